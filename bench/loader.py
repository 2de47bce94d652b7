"""Time of a training sample, from 1280x720 JPEG pairs to 256x256 crops, against a plain Pillow pipeline.

    python bench/loader.py

The plain pipeline decodes image and label with Pillow, resizes both to 256x256 (bicubic), mirrors them and makes float
tensors and a one-hot label. Ours crops, mirrors and changes colours as stage 3 does, either from the files ("cold") or
from the decoded cache ("cached"); what is left to the training process, floats and colours, is part of the time. One
process, one thread; rounds of a few batches of each in turn. Ends with status 1 if the cached path is not 20 times and
the cold path not 2 times as fast, or if a loader process would send anything wide.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch
from PIL import Image

from config.schema import AugmentConfig
from datasets.cache import Cache
from datasets.decoder import Decoder
from datasets.files import Item, from_folders
from datasets.generated import SENSORS, render_scene
from datasets.images import checked
from datasets.samples import EndlessSamples
from engine.batches import ready

IMAGES, BATCH, ROUNDS, IN_A_ROW = 24, 8, 12, 5
HEIGHT, WIDTH, SIZE = 720, 1280, 256
CACHED, COLD = 20.0, 2.0  # least ratios


def draw_pairs(root: Path) -> list[Item]:
    """Generated scenes as JPEG, quality 95, and PNG labels."""
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    for i in range(IMAGES):
        image, label = render_scene(SENSORS["sensor_a"], i, WIDTH)
        Image.fromarray(image[:HEIGHT]).save(root / "images" / f"{i:03d}.jpg", quality=95)
        Image.fromarray(label[:HEIGHT]).save(root / "labels" / f"{i:03d}.png")
    return from_folders(root, labels=True, partial=False).items


def plain(item: Item, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    assert item.label is not None
    image = Image.open(item.image).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    label = Image.open(item.label).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    for draw, way in ((rng.random(), Image.Transpose.FLIP_LEFT_RIGHT), (rng.random(), Image.Transpose.FLIP_TOP_BOTTOM)):
        if draw < 0.5:
            image, label = image.transpose(way), label.transpose(way)
    pixels = np.transpose(np.asarray(image, np.float32) / 255, (2, 0, 1))
    one_hot = np.eye(2)[(np.asarray(label) > 0).astype(int)]
    return {"image": torch.from_numpy(pixels.copy()), "label": torch.from_numpy(one_hot)}


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        items = draw_pairs(root)
        decoder = Decoder(("red", "green", "blue"))
        streams = {
            name: EndlessSamples(
                checked(items, decoder, "pairs", cache),
                "source",
                seed=0,
                size=SIZE,
                geometry="crop",
                amounts=AugmentConfig(jitter=0.5),
            )
            for name, cache in (("cached", Cache(root / "cache")), ("cold", None))
        }
        batches = {name: stream.batches(BATCH, 0, (ROUNDS + 1) * IN_A_ROW) for name, stream in streams.items()}
        rng, order = np.random.default_rng(0), cycle(items)

        def ours(name: str) -> Callable[[], object]:
            return lambda: ready(next(batches[name]), torch.device("cpu"))

        def theirs() -> object:
            made = [plain(next(order), rng) for _ in range(BATCH)]
            return {key: torch.stack([sample[key] for sample in made]) for key in made[0]}

        ways: dict[str, Callable[[], object]] = {"plain": theirs, "cold": ours("cold"), "cached": ours("cached")}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(ROUNDS + 1):
            for name, make in ways.items():
                begin = time.perf_counter()
                for _ in range(IN_A_ROW):
                    make()
                if turn:  # the first round warms up
                    times[name].append((time.perf_counter() - begin) / (IN_A_ROW * BATCH) * 1e3)
        sent = streams["cached"][0]
        wide = [k for k, v in sent.items() if isinstance(v, torch.Tensor) and v.element_size() > 1 and v.numel() > 64]
        size = sum(v.element_size() * v.numel() for v in sent.values() if isinstance(v, torch.Tensor))
    medians = {name: float(np.median(values)) for name, values in times.items()}
    print(
        f"{WIDTH}x{HEIGHT} JPEG and PNG to {SIZE}x{SIZE}, medians of {ROUNDS} x {IN_A_ROW * BATCH} samples, one thread"
    )
    print(f"plain Pillow  {medians['plain']:7.2f} ms a sample, {SIZE * SIZE * (3 * 4 + 2 * 8)} bytes to send")
    print(f"cold          {medians['cold']:7.2f} ms a sample, ratio {medians['plain'] / medians['cold']:.1f}")
    print(f"cached        {medians['cached']:7.2f} ms a sample, ratio {medians['plain'] / medians['cached']:.1f}")
    print(f"a sample crosses from a loader process in {size} bytes; wider than 8 bits: {wide or 'none'}")
    good = medians["plain"] >= max(CACHED * medians["cached"], COLD * medians["cold"]) and not wide
    sys.exit(int(not good))


if __name__ == "__main__":
    main()
