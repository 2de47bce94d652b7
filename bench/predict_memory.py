"""Peak memory and speed of predict.py on a scene of 10,980 x 10,980 pixels, and on one of twice the height.

    python bench/predict_memory.py
    python bench/predict_memory.py --folder scenes          # keeps the scenes and masks there

Draws a uint16 scene of 3 bands with a CRS, a wedge without data and clouds that cross the windows, and random networks
of one backbone, with the default decoder and with DeepLab-v2's head; predicts it in a process of its own and reads that
one's peak resident memory. Ends with status 1 when a peak passes 1.5 GiB, or those of the two heights differ by more
than a tenth. Takes 3 GiB of disk and some minutes.
"""

import argparse
import csv
import json
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import rasterio
from child import peak_of, run
from rasterio.transform import from_origin
from rasterio.windows import Window

SIDE = 10_980  # of a Sentinel-2 scene at 10 m
LIMIT, GROWTH = 1536.0, 0.1  # MiB, share
ROWS = 512

NETWORK = """
import json, sys
import torch
from nets.segmenter import Segmenter
from nets.weights import save_segmenter
torch.manual_seed(0)
target = {"bands": None, "scaling": [[500.0] * 3, [9000.0] * 3], "nodata": "file"}
record = {"bands": ["red", "green", "blue"], "size": 128, "geometry": "crop", "tile": None, "target": target}
network = Segmenter(sys.argv[2], init="kaiming", **json.loads(sys.argv[3]))
save_segmenter(sys.argv[1], network, {"data": json.dumps(record)})
"""
DECODERS = {"fpn": {"decoder_width": 32}, "deeplab_v2": {"decoder": "deeplab_v2", "output_stride": 16}}


def draw_scene(path: Path, height: int, width: int) -> None:
    """Soft clouds of every size over noisy ground, without data left of a slanted line."""
    rng = np.random.default_rng(0)
    tiled = {"tiled": True, "blockxsize": ROWS, "blockysize": ROWS, "compress": "deflate", "zlevel": 1}
    place = {"crs": "EPSG:32633", "transform": from_origin(499_980, 5_300_040, 10, 10)}
    shape = {"height": height, "width": width, "count": 3, "dtype": "uint16", "nodata": 0, "bigtiff": "IF_SAFER"}
    with rasterio.open(path, "w", driver="GTiff", **shape, **place, **tiled) as file:
        for top in range(0, height, ROWS):
            rows = min(ROWS, height - top)
            knots = rng.random((rows // 50 + 2, width // 50 + 2)).astype(np.float32)
            cloud = np.clip(4 * (cv2.resize(knots, (width, rows), interpolation=cv2.INTER_CUBIC) - 0.6), 0, 1)
            line = 0.1 * width + 0.3 * (np.arange(top, top + rows)[:, None] % SIDE)
            for band in range(3):
                ground = 1200 + 300 * band + 100 * rng.standard_normal((rows, width), dtype=np.float32)
                pixels = np.clip((1 - cloud) * ground + 9000 * cloud, 1, 65535).astype(np.uint16)
                pixels[np.arange(width) < line] = 0
                file.write(pixels, band + 1, window=Window(0, top, width, rows))


def measured(folder: Path, backbone: str, decoder: str, height: int) -> tuple[float, float]:
    """Peak resident memory in MiB of predict.py over a scene of this height, and the seconds that it took."""
    scene, out = folder / f"scene_{height}.tif", folder / f"masks_{decoder}_{height}"
    weights = folder / f"{decoder}.safetensors"
    run(NETWORK, str(weights), backbone, json.dumps(DECODERS[decoder]))
    if not scene.exists():
        draw_scene(scene, height, SIDE)
    peak = peak_of("predict.py", "--weights", str(weights), str(scene), "--out", str(out))
    with open(out / "summary.csv", encoding="utf-8") as file:
        seconds = float(next(csv.DictReader(file))["seconds"])
    pixels = height * SIDE / 1e6
    speed = f"{seconds:5.0f} s, {pixels / seconds:.2f} Mpx/s"
    print(f"{decoder:10} {SIDE} x {height}: peak {peak:6.0f} MiB, {speed}", flush=True)
    return peak, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep scenes and masks here")
    parser.add_argument("--side", type=int, default=SIDE, help="height of the smaller scene")
    parser.add_argument("--backbone", default="mobilenetv3_small_050", help="of timm (mobilenetv3_small_050)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        (_, before), (one, seconds) = (measured(folder, given.backbone, of, given.side) for of in ("deeplab_v2", "fpn"))
        two, _ = measured(folder, given.backbone, "fpn", 2 * given.side)
    print(f"fpn beside deeplab_v2: time times {seconds / before:.2f}; twice the height: peak times {two / one:.3f}")
    sys.exit(int(max(one, two) > LIMIT or abs(two / one - 1) > GROWTH))


if __name__ == "__main__":
    main()
