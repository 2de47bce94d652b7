"""Speed of predict.py on the CPU beside ukis-csmask and s2cloudless, on one array in one process.

    python -m venv .venv-bench && source .venv-bench/bin/activate
    pip install -r requirements.txt -r bench/requirements-predict.txt
    python bench/predict.py

The array has ten bands of Sentinel-2 reflectance: s2cloudless takes all ten, ukis-csmask its four-band model's, and so
does this project's network, which is the demo's (mobilenetv3_small_050, stride 16, windows of 128 pixels that overlap
by a quarter) with random weights. Each makes a mask of the whole array by its usual call, with its own choice of
threads. Rounds alternate, the best of each counts. Ends with status 1 when this project is slower than ukis-csmask, or
less than twice as fast as s2cloudless.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from s2cloudless import S2PixelCloudDetector
from ukis_csmask.mask import CSmask

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nets.segmenter import Segmenter
from nets.weights import save_segmenter
from scenes import load_network, predict_array

BANDS = (
    "B01",
    "blue",
    "green",
    "red",
    "nir",
    "B8A",
    "B09",
    "B10",
    "B11",
    "B12",
)  # the ten of s2cloudless, in its order
FOUR = ["blue", "green", "red", "nir"]
WANTED = {"ukis-csmask": 1.0, "s2cloudless": 2.0}  # times as fast


def draw(side: int) -> np.ndarray:
    """Bright soft clouds over darker noisy ground: reflectance (side, side, 10) float32 in [0, 1]."""
    rng = np.random.default_rng(0)
    knots = rng.random((side // 50 + 2, side // 50 + 2)).astype(np.float32)
    cloud = np.clip(4 * (cv2.resize(knots, (side, side), interpolation=cv2.INTER_CUBIC) - 0.6), 0, 1)[..., None]
    ground = 0.12 + 0.02 * rng.standard_normal((side, side, len(BANDS)), dtype=np.float32)
    return np.clip((1 - cloud) * ground + 0.8 * cloud, 0, 1).astype(np.float32)


def ours(folder: Path) -> Callable[[np.ndarray], object]:
    torch.manual_seed(0)
    segmenter = Segmenter("mobilenetv3_small_050", in_channels=len(FOUR), init="kaiming")
    target = {"bands": FOUR, "scaling": [[0.0] * 4, [1.0] * 4], "nodata": "none"}
    data = {"bands": FOUR, "size": 128, "geometry": "crop", "tile": None, "target": target}
    save_segmenter(folder / "student.safetensors", segmenter, {"data": json.dumps(data)})
    network = load_network(folder / "student.safetensors", "cpu")
    chosen = [BANDS.index(band) for band in FOUR]
    return lambda scene: predict_array(network, scene[..., chosen]).mask


def ukis_csmask(scene: np.ndarray) -> object:
    chosen = [BANDS.index(band) for band in FOUR]
    return CSmask(scene[..., chosen], FOUR, product_level="l1c", providers=["CPUExecutionProvider"]).csm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024, help="side of the array in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    scene = draw(given.side)
    detector = S2PixelCloudDetector(all_bands=False)
    with tempfile.TemporaryDirectory() as temporary:
        masks: dict[str, Callable[[np.ndarray], object]] = {
            "ASDA": ours(Path(temporary)),
            "ukis-csmask": ukis_csmask,
            "s2cloudless": lambda scene: detector.get_cloud_masks(scene[None]),
        }
        for mask in masks.values():  # models are loaded, kernels chosen
            mask(scene[:256, :256].copy())
        best = dict.fromkeys(masks, float("inf"))
        for _ in range(given.rounds):
            for name, mask in masks.items():
                began = time.perf_counter()
                mask(scene)
                best[name] = min(best[name], time.perf_counter() - began)
    speed = {name: scene.shape[0] * scene.shape[1] / 1e6 / seconds for name, seconds in best.items()}
    for name, rate in speed.items():
        print(f"{name:12s} {rate:7.3f} Mpx/s, ASDA is {speed['ASDA'] / rate:6.2f} times as fast")
    sys.exit(int(any(speed["ASDA"] < wanted * speed[name] for name, wanted in WANTED.items())))


if __name__ == "__main__":
    main()
