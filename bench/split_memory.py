"""Peak memory of stage 2 grows by less than 20 MiB from 200 to 2,000 images.

    python bench/split_memory.py

Draws two small unlabelled domains and a random teacher in a temporary folder, runs split_entropy.py on each domain in a
process of its own and compares the peaks of their resident memory. Ends with status 1 when the limit is passed.
"""

import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from child import peak_of, run

COUNTS = (200, 2000)
LIMIT = 20.0  # MiB
SIDE = 64  # pixels
BACKBONE = "mobilenetv3_small_050"

TEACHER = """
import sys
import torch
from nets.segmenter import Segmenter
from nets.weights import save_segmenter
torch.manual_seed(0)
save_segmenter(sys.argv[1], Segmenter(sys.argv[2]))
"""


def draw_domain(root: Path, count: int) -> None:
    """Write `count` images of a random colour with noise, each different, to `root/images`."""
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(count)
    for number in range(count):
        pixels = rng.normal(rng.uniform(40, 215, 3), 20, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
        assert cv2.imwrite(str(root / "images" / f"{number:05d}.png"), pixels)


def peak_of_split(folder: Path, count: int) -> float:
    """Peak resident memory in MiB of stage 2 over `count` images."""
    target, out = folder / "target", folder / "run"
    draw_domain(target, count)
    (out / "teacher").mkdir(parents=True)
    run(TEACHER, str(out / "teacher" / "teacher.safetensors"), BACKBONE)
    options = {
        "out": out,
        "source.root": target,  # stage 2 never opens the source
        "target.root": target,
        "net.backbone": BACKBONE,
        "data.size": SIDE,
        "data.geometry": "crop",
        "device": "cpu",
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    began = time.perf_counter()
    peak = peak_of("split_entropy.py", *words)
    seconds = time.perf_counter() - began
    rows = len((out / "split" / "entropy.csv").read_text("utf-8").splitlines()) - 1
    assert rows == count, f"entropy.csv has {rows} rows, expected {count}"
    print(f"{count:5d} images: peak {peak:7.1f} MiB, {seconds:5.1f} s")
    return peak


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        few, many = (peak_of_split(Path(temporary) / str(count), count) for count in COUNTS)
    growth = many - few
    print(f"growth {growth:.1f} MiB (limit {LIMIT:.0f}), ratio {many / few:.3f}")
    sys.exit(int(growth >= LIMIT))


if __name__ == "__main__":
    main()
