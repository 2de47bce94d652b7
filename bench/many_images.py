"""Peak memory of listing, checking and sampling 1,000 and 10,000 images of 384x384.

    python bench/many_images.py

Draws both domains in a temporary folder (about 1.5 GB), then runs in a process of its own for each: the check command's
pass, the check before training, without and with the decoded cache, and 2,000 samples. Ends with status 1 if the peak
grows by more than 40 MiB, which is 4 KiB for each further image: its paths, its name and a hash.
"""

import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from child import run

COUNTS = (1_000, 10_000)
SIDE, SAMPLES = 384, 2_000
LIMIT = 40.0  # MiB

MEASURE = """
import sys
from datasets.cache import Cache
from datasets.check import inspect_part
from datasets.files import from_folders
from datasets.decoder import Decoder
from datasets.images import checked
from datasets.samples import EndlessSamples
from engine.batches import ready
from pathlib import Path
from config.schema import AugmentConfig
from engine.memory import process_peak_mib
root, samples = Path(sys.argv[1]), int(sys.argv[2])
decoder = Decoder(("red", "green", "blue"))
items = from_folders(root, labels=True, partial=False).items
assert not inspect_part(items, decoder, "check").problems
for cache in (None, Cache(root / "cache")):
    stream = EndlessSamples(
        checked(items, decoder, "training", cache), "source", seed=0, size=256, geometry="crop",
        amounts=AugmentConfig(jitter=0.5),
    )
    for batch in stream.batches(8, 0, samples // 8):
        ready(batch, "cpu")
print(len(items), process_peak_mib())
"""


def draw_domain(root: Path, count: int) -> None:
    """Write `count` different images with labels; one in blocks of one colour, so that it is quickly packed."""
    rng = np.random.default_rng(count)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        small = rng.integers(0, 256, (12, 12, 3), np.uint8)
        for folder, pixels in (("images", small), ("labels", np.where(small[..., 0] > 128, 255, 0).astype(np.uint8))):
            whole = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
            assert cv2.imwrite(str(root / folder / f"{number:05d}.png"), whole)


def peak(folder: Path, count: int) -> float:
    """Peak resident memory in MiB."""
    root = folder / str(count)
    draw_domain(root, count)
    began = time.perf_counter()
    listed, mib = run(MEASURE, str(root), str(SAMPLES)).split()
    assert int(listed) == count
    print(f"{count:6d} images: peak {float(mib):6.1f} MiB, {time.perf_counter() - began:6.1f} s", flush=True)
    return float(mib)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        few, many = (peak(Path(temporary), count) for count in COUNTS)
    growth = many - few
    each = growth * 1024 / (COUNTS[1] - COUNTS[0])
    print(f"growth {growth:.1f} MiB (limit {LIMIT:.0f}), {each:.1f} KiB for each further image, ratio {many / few:.3f}")
    sys.exit(int(growth > LIMIT))


if __name__ == "__main__":
    main()
