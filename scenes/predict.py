"""A scene, from a file or an array to its masks, and what they sum up to."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.files import Item
from scenes.masks import CLOUD, UNKNOWN, dilated, without_small
from scenes.network import CloudNetwork
from scenes.rasters import MASK, SHARE, Output, Thumbnail, grid_of, slabs, write_quicklook, writing
from scenes.streams import ahead
from scenes.windows import Rows, blended, plan
from utils.errors import ConfigError, DataError

Write = Callable[[np.ndarray], object]
LAYERS = ("mask", "probability", "entropy", "quicklook")
AHEAD = 2  # slabs that are read, and strips that are predicted, before they are asked for
GDAL_CACHE = 64  # MiB


@dataclass(frozen=True)
class Options:
    """How a scene is predicted.

    Attributes:
        window, overlap: of windows, in pixels of the scene; None: see `scenes.windows.plan`.
        threshold: what has a higher probability of cloud is cloud.
        flips: take the mean over each window and its three mirror images; four times the work.
        min_cloud: clouds of fewer pixels than this are cleared.
        buffer: pixels that are this near to a cloud's become cloud; after `min_cloud`.
    """

    window: int | None = None
    overlap: int | None = None
    threshold: float = 0.5
    flips: bool = False
    min_cloud: int = 0
    buffer: int = 0

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: a value that means nothing.
        """
        for name, value, holds, expected in (
            ("window", self.window, self.window is None or self.window >= 1, "1 or more"),
            ("overlap", self.overlap, self.overlap is None or self.overlap >= 0, "0 or more"),
            ("threshold", self.threshold, 0 <= self.threshold <= 1, "a probability, from 0 to 1"),
            ("min_cloud", self.min_cloud, self.min_cloud >= 0, "0 or more pixels"),
            ("buffer", self.buffer, self.buffer >= 0, "0 or more pixels"),
        ):
            if not holds:
                raise ConfigError(f"{name} is {value}, expected {expected}")


class Result(NamedTuple):
    """What is known of an image of (H, W) pixels.

    `mask` uint8: 0 clear, 1 cloud, 255 no data. `probability` of cloud and its `entropy` in bits, float32 in [0, 1],
    NaN without data.
    """

    mask: np.ndarray
    probability: np.ndarray
    entropy: np.ndarray


class Summary(NamedTuple):
    """Of one scene: cloud as a share of the pixels with data, those as a share of all, their mean entropy in [0, 1],
    and the seconds that it took. Without data, the first and third are NaN."""

    cloud_share: float
    valid_share: float
    mean_entropy: float
    seconds: float


def predict_array(
    network: CloudNetwork, image: np.ndarray, valid: np.ndarray | None = None, options: Options | None = None
) -> Result:
    """The masks of an image in memory.

    Args:
        image: (H, W, C), the bands in the order of `network.images.decoder.bands`, with the values of the files that
            the network is for (uint8, uint16, int16 or float32): they are scaled to 8 bits as those are.
        valid: (H, W) bool, where there is data; None: everywhere but at NaN and infinity.

    Raises:
        DataError: an image of another shape, or of values that are not those of the network's files.
    """
    options = options or Options()
    bands = network.images.decoder.bands
    if image.ndim != 3 or image.shape[2] != len(bands) or not image.size:
        raise DataError(f"found an array {image.shape}, expected (H, W, {len(bands)}): {', '.join(bands)}")
    if valid is None:
        valid = np.isfinite(image).all(2)
    if valid.shape != image.shape[:2]:
        raise DataError(f"found valid of {valid.shape}, expected {image.shape[:2]} as the image")
    scaled = network.images.decoder.scaled(image, Item("array", (Path("array"),)))
    scaled = np.where(valid[..., None], scaled, np.uint8(0))
    height, width = valid.shape
    windows = plan(height, width, network.images, options.window, options.overlap)
    strips = blended(network, iter([Rows(scaled, valid)]), windows, flips=options.flips, tick=lambda _: None)
    layers: dict[str, list[np.ndarray]] = {"probability": [], "entropy": []}
    masks = list(_masks(strips, options, {name: parts.append for name, parts in layers.items()}, _Sums()))
    return Result(np.concatenate(masks), *(np.concatenate(parts) for parts in layers.values()))


def predict_scene(
    network: CloudNetwork,
    path: str | Path,
    outputs: Mapping[str, Path],
    options: Options | None = None,
    *,
    tick: Callable[[int, int], object] = lambda done, total: None,
) -> Summary:
    """The masks of a scene in a file, written to files. Reading, computing and writing overlap in time.

    Args:
        path: whatever the project reads: a GeoTIFF or another raster of GDAL, or a PNG, JPEG or BMP.
        outputs: where to write which of `LAYERS`; "mask", "probability" and "entropy" as cloud-optimised GeoTIFF on the
            scene's own grid, or as PNG, by the name's end; "quicklook" as PNG. The mask is put in place last. A folder
            .NAME.part beside it holds what is not finished; one that an earlier attempt left is removed.
        tick: called with the number of windows that are done, and how many there are.

    Raises:
        DataError: the scene cannot be used, or an output cannot be written; none of the outputs is half there.
    """
    import rasterio

    options, path, began = options or Options(), Path(path), time.perf_counter()
    grid = grid_of(path)
    try:
        windows = plan(grid.height, grid.width, network.images, options.window, options.overlap)
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from None
    total, done = len(windows.rows) * len(windows.columns), 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        tick(done, total)

    image_small, mask_small, sums = Thumbnail(grid), Thumbnail(grid), _Sums()

    def scene() -> Iterator[Rows]:
        for slab in slabs(path, network.images.decoder, grid):
            image_small.add(slab.layer)
            yield slab

    with ExitStack() as stack:
        scratch = stack.enter_context(_scratch_beside(outputs["mask"]))
        # Without a limit GDAL keeps what it read and wrote in up to a twentieth of the machine's memory.
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE))
        read = stack.enter_context(ahead(scene(), AHEAD))
        strips = stack.enter_context(ahead(blended(network, read, windows, flips=options.flips, tick=count), AHEAD))
        layers = {}
        for name in ("probability", "entropy", "mask"):
            if name in outputs:
                layers[name] = Output(outputs[name], grid, MASK if name == "mask" else SHARE, scratch)
                stack.callback(layers[name].close)
        for strip in _masks(strips, options, {name: layer.add for name, layer in layers.items()}, sums):
            layers["mask"].add(strip)
            mask_small.add(strip)
        if "quicklook" in outputs:
            write_quicklook(outputs["quicklook"], image_small, mask_small, network.images.decoder.bands, scratch)
        for layer in layers.values():
            layer.finish()
    return sums.summary(grid.height * grid.width, time.perf_counter() - began)


@contextmanager
def _scratch_beside(path: Path) -> Iterator[Path]:
    scratch = path.with_name(f".{path.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    with writing(path):
        scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def entropy_of(probability: np.ndarray) -> np.ndarray:
    """The entropy of clear and cloud in bits, float32 in [0, 1], of the probability of one of them."""
    p = np.clip(probability, np.float32(1e-7), np.float32(1 - 1e-7))
    q = 1 - p
    return -(p * np.log2(p) + q * np.log2(q))


class _Sums:
    """Counts over the strips of a scene."""

    def __init__(self) -> None:
        self.cloud = self.valid = 0
        self.entropy = 0.0

    def summary(self, pixels: int, seconds: float) -> Summary:
        valid = self.valid or float("nan")
        return Summary(self.cloud / valid, self.valid / pixels, self.entropy / valid, seconds)


def _masks(strips: Iterator[Rows], options: Options, write: Mapping[str, Write], sums: _Sums) -> Iterator[np.ndarray]:
    """The mask's strips; the other layers are written, and sums are taken, as they pass."""

    def decided() -> Iterator[np.ndarray]:
        for probability, valid in strips:
            entropy = entropy_of(probability)
            sums.valid += int(valid.sum())
            sums.entropy += float(entropy.sum(where=valid, dtype=np.float64))
            for name, layer in (("probability", probability), ("entropy", entropy)):
                if name in write:
                    write[name](np.where(valid, layer, np.float32("nan")))
            yield np.where(valid, (probability > options.threshold).view(np.uint8), np.uint8(UNKNOWN))

    masks = decided()
    if options.min_cloud > 1:
        masks = without_small(masks, options.min_cloud)
    if options.buffer:
        masks = dilated(masks, options.buffer)
    for strip in masks:
        sums.cloud += int(np.count_nonzero(strip == CLOUD))
        yield strip
