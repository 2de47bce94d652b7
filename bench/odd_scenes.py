"""What odd scenes cost: mIoU of a run's network on its target, by holes, order of the bands, and size.

    python bench/odd_scenes.py runs/demo_seed0 runs/demo_seed1 runs/demo_seed2

The labelled evaluation images are predicted as predict.py does: as GeoTIFF with NaN at 0.5 and at 2 % of their pixels,
single ones at random, of which other fills are made here; with their bands in the order blue, green, red; and cut into
squares, as they are and in reflected surroundings as large as the training crop. Scored is what has data.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import rasterio
from rasterio.enums import ColorInterp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets.scaling import Stretch
from engine.layout import best_model
from report.failures import FinishedRun
from report.metrics import confusion_matrix, scores
from scenes import CloudNetwork, load_network, predict_array, predict_scene
from utils.errors import DataError
from utils.labels import IGNORE

Scenes = list[tuple[np.ndarray, np.ndarray]]  # images (H, W, C) of 8-bit values, and labels (H, W)
Predict = Callable[[np.ndarray], np.ndarray]  # an image to its mask
SHARES = (0.005, 0.02)
DEVIATION = 2  # pixels, of the blurred fill
SIDES = (32, 64)


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


def miou(predict: Predict, scenes: Scenes) -> float:
    """In percent."""
    matrix = np.zeros((2, 2), np.int64)
    for image, label in scenes:
        prediction = np.where(label == IGNORE, np.uint8(0), predict(image))
        matrix += confusion_matrix(label=label, prediction=prediction)
    return 100 * float(scores(matrix)["miou"])


def from_file(network: CloudNetwork, names: tuple[str, ...], by: str, given: tuple[str, ...] | None = None) -> Predict:
    """By way of a GeoTIFF that names its bands by "descriptions", by "interpretation", or not at all, to a network that
    is told that they are `given`."""
    images = network.images
    network = replace(network, images=replace(images, decoder=replace(images.decoder, file_bands=given)))

    def predict(image: np.ndarray) -> np.ndarray:
        height, width, bands = image.shape
        with tempfile.TemporaryDirectory() as folder:
            path, mask = Path(folder, "scene.tif"), Path(folder, "mask.tif")
            kind = {"height": height, "width": width, "count": bands, "dtype": image.dtype}
            with rasterio.open(path, "w", driver="GTiff", **kind) as file:
                if by == "descriptions":
                    file.descriptions = names
                elif by == "interpretation":
                    file.colorinterp = [ColorInterp[name] for name in names]
                file.write(image.transpose(2, 0, 1))
            predict_scene(network, path, {"mask": mask})
            with rasterio.open(mask) as file:
                found: np.ndarray = file.read(1)
        return found

    return predict


def holes(network: CloudNetwork, whole: Scenes) -> Iterator[tuple[str, list[float]]]:
    predict = from_file(network, network.images.decoder.bands, "descriptions")
    rng = np.random.default_rng(0)
    valids = [[rng.random(label.shape) >= share for _, label in whole] for share in SHARES]
    for name, fill in FILLS.items():
        found = []
        for of_share in valids:
            pairs = zip(whole, of_share, strict=True)
            spoilt = [
                (fill(image.astype(np.float32), valid), np.where(valid, label, np.uint8(IGNORE)))
                for (image, label), valid in pairs
            ]
            found.append(miou(predict, spoilt))
        yield f"holes of {SHARES[0]:.1%} and {SHARES[1]:.0%}: {name}", found


def orders(network: CloudNetwork, whole: Scenes) -> Iterator[tuple[str, list[float] | str]]:
    right = network.images.decoder.bands
    turned = right[::-1]
    scenes = [(image[..., ::-1], label) for image, label in whole]
    for by, given in product(("descriptions", "interpretation", "nothing"), (None, right, turned)):
        told = "nothing" if given is None else ", ".join(given)
        try:
            found: list[float] | str = [miou(from_file(network, turned, by, given), scenes)]
        except DataError as error:
            found = str(error).partition(": ")[2]
        yield f"{', '.join(turned)}: named by {by}, told {told}", found


def sizes(network: CloudNetwork, whole: Scenes) -> Iterator[tuple[str, list[float]]]:
    crop = network.images.size

    def as_it_is(image: np.ndarray) -> np.ndarray:
        return predict_array(network, image).mask

    def reflected(image: np.ndarray) -> np.ndarray:
        side = len(image)
        before = (crop - side) // 2
        around = np.pad(image, 2 * [(before, crop - side - before)] + [(0, 0)], "symmetric")
        return as_it_is(around)[before : before + side, before : before + side]

    for side in SIDES:
        cut = [
            (image[top : top + side, left : left + side], label[top : top + side, left : left + side])
            for image, label in whole
            for top, left in product(*(range(0, length - side + 1, side) for length in label.shape))
        ]
        yield f"squares of {side} pixels: as they are, reflected", [miou(as_it_is, cut), miou(reflected, cut)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run of bash.sh")
    warnings.filterwarnings("ignore", category=UserWarning)  # notes of arrays: that they are small
    for run in parser.parse_args().runs:
        images = FinishedRun(run).images
        network = load_network(best_model(run).weights(run))
        bands = network.images.decoder.bands
        eight_bits = Stretch((0.0,) * len(bands), (255.0,) * len(bands))
        decoder = replace(network.images.decoder, scaling=eight_bits, file_bands=None)
        network = replace(network, images=replace(network.images, decoder=decoder))
        read = [images.read(item) for item in images if item.label is not None]
        whole = [(of.image, of.label) for of in read if of.label is not None]
        print(f"{run}: whole {miou(from_file(network, bands, 'descriptions'), whole):.1f}", flush=True)
        for part in (holes, orders, sizes):
            for name, found in part(network, whole):
                shown = found if isinstance(found, str) else ", ".join(f"{value:.1f}" for value in found)
                print(f"  {name}: {shown}", flush=True)


if __name__ == "__main__":
    main()
