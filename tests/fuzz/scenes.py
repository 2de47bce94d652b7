"""Scenes as users have them: whatever a file says of its bands, units, holes and tags, and whatever links lead to it,
its mask is the right one or there is none."""

import os
import sys
from functools import partial
from pathlib import Path
from random import Random

import cv2
import numpy as np
import rasterio
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from rasterio.transform import from_origin

from datasets.cache import Cache
from datasets.check import inspect_part
from datasets.decode import RGB
from datasets.decoder import Decoder
from datasets.files import Item, raise_all
from datasets.images import checked
from datasets.scaling import Stretch
from engine.signals import terminable
from scenes import CloudNetwork, Images, predict_scene
from scenes.inputs import find_scenes
from tests.fuzz.runner import Case, Try
from utils.errors import DataError, Interrupted
from utils.output import guard_streams, progress_bar

CLEAR, BRIGHT, OFFSET = 4300, 5700, 1000  # levels of red; of reflectance, 10,000 are 1. The offset turns clear to cloud
WORDS = ("", "B4", "band 1", "unknown", "gr\u00fcn", "x" * 300, "red, green", "infrared")


def redness(windows: np.ndarray, size: tuple[int, int], sound: bool) -> np.ndarray:
    """Stands for a network: cloud is where red is bright. In a sound scene nothing is black but a hole."""
    assert windows.shape[1:3] == size and not (sound and windows.min() < 50), "was shown a hole"
    return windows[..., 0].astype(np.float32) / 255


def layers_of(rng: Random) -> dict[str, np.ndarray]:
    """Bands (H, W) of levels: red is bright in clouds, green where there is none, blue and nir are in between."""
    shape = rng.randrange(20, 90), rng.randrange(20, 90)
    noise = np.random.default_rng(rng.randrange(2**32))
    cloud = cv2.resize(noise.random((4, 4)).astype(np.float32), shape[::-1], interpolation=cv2.INTER_CUBIC) > 0.5
    levels = {"red": np.where(cloud, BRIGHT, CLEAR), "green": np.where(cloud, CLEAR, BRIGHT)}
    levels |= {name: np.full(shape, 4000 + 500 * i) for i, name in enumerate(("blue", "nir"))}
    return {name: level + noise.integers(-300, 300, shape) for name, level in levels.items()}


def scene(rng: Random, base: Path, box: Path) -> Case:
    layers = layers_of(rng)
    order = rng.sample([*RGB, *rng.choice(((), ("nir",)))], k=3) if rng.random() < 0.1 else list(RGB)
    order = [*RGB] if "red" not in order else order
    if rng.random() < 0.7:
        order = rng.sample([*RGB, "nir"], k=4)
    wrong = False  # whether it has to be refused
    file_bands: tuple[str, ...] | None = tuple(order)
    names, colours = [""] * len(order), [ColorInterp.undefined] * len(order)
    told = rng.choice(("names", "names", "colours", "words", "nothing", "others"))
    if told == "names":
        names = [rng.choice((name, name.upper(), f" {name.title()}")) for name in order]
        file_bands = rng.choice((file_bands, None))
    elif told == "colours" and "nir" not in order:
        colours = [ColorInterp[name] for name in order]
    elif told == "words":
        names = [rng.choice(WORDS) for _ in order]
    elif told == "others":
        names = [*order[1:], order[0]]
        wrong = True
    if {"red", "green", "blue"} - {*order}:
        wrong = True
    kind = rng.choice(("uint16", "int16", "float32"))
    stored = np.stack([layers[name] for name in order]).astype(np.float32)
    units = rng.choice(("levels", "levels", "tags", "offset", "reflectance", "tagged reflectance"))
    tags, scale, offset, ends = None, None, None, (500.0, 9500.0)
    if units == "tags":
        stored, tags = stored + OFFSET, (1.0, -float(OFFSET))
    elif units == "offset":
        stored, offset = stored + OFFSET, -float(OFFSET)
    elif units == "tagged reflectance":
        stored, tags, ends = stored + OFFSET, (1e-4, -0.1), (0.05, 0.95)
    elif units == "reflectance":
        kind, wrong = "float32", True
        stored = stored / 10_000
    holes = np.random.default_rng(rng.randrange(2**32)).random(stored.shape[1:]) < rng.choice((0, 0.005, 0.02, 0.3))
    fill: float | None = rng.choice((0, 65535 if kind == "uint16" else -9999))
    if kind == "float32" and rng.random() < 0.5:
        fill = float("nan")
    stored[:, holes] = fill

    root = box / "root"
    folder = rng.choice(("scenes", "scenes", "linked", "outside"))
    place = {"scenes": root / "scenes", "linked": root / "store", "outside": box / "outside"}[folder]
    place.mkdir(parents=True)
    root.mkdir(exist_ok=True)
    if folder != "scenes":
        (root / "scenes").symlink_to(os.path.relpath(place, root), target_is_directory=True)
    path = place / "fuzzed.tif"
    where = {"crs": "EPSG:32633", "transform": from_origin(5e5, 5e6, 10, 10)} if rng.random() < 0.8 else {}
    shape = {"count": len(order), "height": stored.shape[1], "width": stored.shape[2], "dtype": kind, "nodata": fill}
    with rasterio.open(path, "w", driver="GTiff", photometric="MINISBLACK", **shape, **where) as file:
        file.write(stored.astype(kind))
        file.colorinterp = colours
        for band, name in enumerate(names, 1):
            if name:
                file.set_band_description(band, name)
        if tags is not None:
            file.scales, file.offsets = [tags[0]] * len(order), [tags[1]] * len(order)
        file.update_tags(**{rng.choice(("TIME", "a b", "\u00e4", "ASDA_MODEL")): rng.choice(WORDS) for _ in range(3)})
        if rng.random() < 0.2:
            ones = [rng.uniform(-1, 1) for _ in range(20)]
            file.rpcs = RPC(0, 1, 0, 1, ones, ones, 0, 1, 0, 1, ones, ones, 0, 1)

    decoder = Decoder(RGB, file_bands, Stretch((ends[0],) * 3, (ends[1],) * 3), scale=scale, offset=offset)
    network = CloudNetwork(Path("network"), Images(decoder, 32, "crop", None), partial(redness, sound=not wrong))
    expected = np.where(holes, 255, layers["red"] > (CLEAR + BRIGHT) / 2)

    def predicted() -> None:
        try:
            masked()
        except DataError as error:
            assert wrong or folder == "outside", f"a sound scene was refused: {error}"
            raise

    def masked() -> None:
        found, faults = find_scenes([str(root)], box / "out")
        raise_all(faults, str(root))
        (name,) = [name for name, at in found.items() if at.resolve() == path.resolve()][:1]
        masks = {layer: box / "out" / f"{name.replace('/', '_')}_{layer}.tif" for layer in ("mask", "probability")}
        predict_scene(network, found[name], masks)
        with rasterio.open(masks["mask"]) as file:
            mask = file.read(1)
        assert not wrong and folder != "outside", f"was accepted: {told}, {order}, {units}, {folder}"
        assert np.array_equal(mask, expected), f"{(mask != expected).mean():.1%} of the mask are wrong"

    def read() -> None:
        image = checked(
            [Item("fuzzed", (path,))], decoder, "fuzz", Cache(box / "cache") if rng.random() < 0.3 else None
        )
        decoded = image.read(next(iter(image)))
        assert not wrong, f"was read: {told}, {order}, {units}"
        seen = decoded.placed((decoded.image[..., 0] > 127).astype(np.uint8), 255)
        assert np.array_equal(seen, np.where(decoded.placed(decoded.valid, False), seen, 255))
        assert np.array_equal(seen[~holes], expected[~holes])

    def surveyed() -> None:
        raise_all(inspect_part([Item("fuzzed", (path,))], decoder, "fuzz").problems, str(path))

    calls = [predicted, read, surveyed]
    if rng.random() < 0.02:
        calls = [lambda: deaf(box)]
    return [Try(call, ("fuzzed", "scenes", "outside", "fuzz")) for call in calls]


def deaf(box: Path) -> None:
    """Progress whose reader has gone away: it ends, or is asked to end, and never hangs."""
    reader, writer = os.pipe()
    os.close(reader)
    kept = os.dup(2)
    os.dup2(writer, 2)
    try:
        guard_streams()
        with terminable():
            for _ in progress_bar(range(200), desc="x" * 1000, disable=False):
                print("y" * 1000, file=sys.stderr, flush=True)
        raise DataError("fuzz: nobody asked it to end")
    except Interrupted:
        pass
    finally:
        os.dup2(kept, 2)
        os.close(writer)
        os.close(kept)
