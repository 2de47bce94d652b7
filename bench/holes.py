"""What pixels without data cost: mIoU of a run's network on its target, by what the network is shown in their place.

    python bench/holes.py runs/demo_seed0 runs/demo_seed1 runs/demo_seed2

The labelled evaluation images are written as GeoTIFF with NaN at 0.5 and at 2 % of their pixels, single ones at random,
and predicted as predict.py does; scored is what has data. The other fills are made here, and shown as whole images.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import rasterio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets.scaling import Stretch
from engine.layout import best_model
from report.failures import FinishedRun
from report.metrics import confusion_matrix, scores
from scenes import CloudNetwork, load_network, predict_scene
from utils.labels import IGNORE

SHARES = (0.005, 0.02)
DEVIATION = 2  # pixels, of the blurred fill


def mean(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    return np.where(valid[..., None], image, image[valid].mean(0))


def blurred(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The mean of valid pixels, weighted by a Gaussian about each hole."""
    weight, total = (
        cv2.GaussianBlur(layer, (0, 0), DEVIATION) for layer in (valid.astype(np.float32), image * valid[..., None])
    )
    return np.where(valid[..., None], image, total / np.maximum(weight, 1e-6)[..., None])


def black(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    return image * valid[..., None]


def as_predicted(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    return np.where(valid[..., None], image, np.float32("nan"))


FILLS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "nearest, as in predict.py": as_predicted,
    "blurred": blurred,
    "mean of the image": mean,
    "0": black,
}


def miou(network: CloudNetwork, scenes: list[tuple[np.ndarray, np.ndarray]], folder: Path) -> float:
    """In percent, of scenes (H, W, C) float32 in files and their labels (H, W)."""
    path, mask, matrix = folder / "scene.tif", folder / "mask.tif", np.zeros((2, 2), np.int64)
    for image, label in scenes:
        height, width, bands = image.shape
        with rasterio.open(path, "w", height=height, width=width, count=bands, dtype="float32") as file:
            file.descriptions = network.images.decoder.bands
            file.write(image.transpose(2, 0, 1))
        predict_scene(network, path, {"mask": mask})
        with rasterio.open(mask) as file:
            prediction = np.where(label == IGNORE, np.uint8(0), file.read(1))
        matrix += confusion_matrix(label=label, prediction=prediction)
    return 100 * float(scores(matrix)["miou"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run of bash.sh")
    print(f"{'run':24s} {'fill':26s} {'whole':>6s}", *(f"{share:6.1%}" for share in SHARES))
    for run in parser.parse_args().runs:
        images = FinishedRun(run).images
        network = load_network(best_model(run).weights(run))
        bands = network.images.decoder.bands
        eight_bits = Stretch((0.0,) * len(bands), (255.0,) * len(bands))
        decoder = replace(network.images.decoder, scaling=eight_bits, file_bands=None)
        network = replace(network, images=replace(network.images, decoder=decoder))
        read = [images.read(item) for item in images if item.label is not None]
        whole = [(of.image.astype(np.float32), of.label) for of in read if of.label is not None]
        rng = np.random.default_rng(0)
        data = {share: [rng.random(label.shape) >= share for _, label in whole] for share in SHARES}
        with tempfile.TemporaryDirectory() as folder:
            best = miou(network, whole, Path(folder))
            for name, fill in FILLS.items():
                found = []
                for valids in data.values():
                    pairs = zip(whole, valids, strict=True)
                    holed = [(fill(image, v), np.where(v, label, np.uint8(IGNORE))) for (image, label), v in pairs]
                    found.append(miou(network, holed, Path(folder)))
                print(f"{run!s:24s} {name:26s} {best:6.1f}", *(f"{value:6.1f}" for value in found), flush=True)


if __name__ == "__main__":
    main()
