"""A scene, from a file or an array to its masks, and what they sum up to."""

import math
import shutil
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from config.fields import at_least, faults, share, within
from datasets.decode import Bands
from datasets.files import Item
from datasets.products import Product, is_product, open_product
from datasets.values import LIMIT, Values
from engine.windows import Plan, PredictBatch, Rows, blended, plan
from scenes.masks import CLOUD, dilated, without_small
from scenes.network import CloudNetwork
from scenes.rasters import (
    MASK,
    SHARE,
    Output,
    Thumbnail,
    grid_of,
    grid_of_product,
    slabs,
    slabs_of_product,
    write_quicklook,
    writing,
)
from scenes.streams import ahead
from utils.errors import ConfigError, DataError
from utils.labels import IGNORE
from utils.records import commit
from utils.version import VERSION

Write = Callable[[np.ndarray], object]
Tick = Callable[[int, int], object]
AHEAD = 2  # slabs that are read, and strips that are predicted, before they are asked for
GDAL_CACHE = 64  # MiB
NOTES = " | "  # between two notes of a scene
BATCH = 2**18  # pixels of network input in one batch
WHOLE = 4096  # pixels: the longest side of a scene that is seen whole


@dataclass(frozen=True)
class Options:
    """How a scene is predicted; a value that means nothing raises ConfigError.

    Attributes:
        window, overlap: of windows, in pixels of the scene; None: the network's own, see `engine.windows`.
        threshold: what has a higher probability of cloud is cloud.
        flips: take the mean over each window and its three mirror images; four times the work.
        min_cloud: clouds of fewer pixels than this are cleared.
        buffer: pixels that are this near to a cloud's become cloud; after `min_cloud`.
        outside: a scene is refused if more than this share of its values lies outside the range that the scaling knows.
    """

    window: int | None = at_least(None, 1)
    overlap: int | None = at_least(None, 0)
    threshold: float = within(0.5, 0, 1, "a probability")
    flips: bool = False
    min_cloud: int = at_least(0, 0, " pixels")
    buffer: int = at_least(0, 0, " pixels")
    outside: float = share(LIMIT)

    def __post_init__(self) -> None:
        for sentence in faults(self):
            raise ConfigError(sentence)

    def plan(self, height: int, width: int, network: CloudNetwork) -> Plan:
        """The windows of a scene of (height, width) pixels; raises ConfigError for windows that do not move, or a scene
        that is too large to be seen whole."""
        windows = plan(height, width, network.images, self.window or network.window, self.overlap)
        if windows.whole and max(height, width) > WHOLE:
            size = network.images.size
            expected = f"the network knows only whole images, scaled to {size} pixels"
            fix = f"give --window, the pixels that are scaled to {size} at a time"
            raise ConfigError(f"found a scene of {width}x{height} pixels, and {expected}; {fix}")
        return windows


class Result(NamedTuple):
    """Of an image of (H, W) pixels: `mask` uint8, 0 clear, 1 cloud, 255 no data; `probability` of cloud and its
    `entropy` in bits, float32 in [0, 1], NaN without data."""

    mask: np.ndarray
    probability: np.ndarray
    entropy: np.ndarray


class Summary(NamedTuple):
    """Of one scene: cloud as a share of the pixels with data, those as a share of all, their mean entropy in [0, 1],
    the seconds that it took, the share of the values outside the range that the scaling knows, and what should be known
    before the mask is believed, a sentence each, joined by " | ". Without data, the first and third are NaN."""

    cloud_share: float
    valid_share: float
    mean_entropy: float
    seconds: float
    outside_share: float = 0.0
    notes: str = ""


def predict_array(
    network: CloudNetwork, image: np.ndarray, valid: np.ndarray | None = None, options: Options | None = None
) -> Result:
    """The masks of an image in memory.

    Args:
        image: (H, W, C), the bands in the order of `network.images.decoder.bands`, with the values of the files that
            the network is for (uint8, uint16, int16 or float32): they are scaled to 8 bits as those are.
        valid: (H, W) bool, where there is data; None: everywhere but at NaN and infinity.

    An image of another shape, or of values that are not those of the network's files, raises DataError; what a
    scene's summary would note is warned of.
    """
    options = options or Options()
    bands = network.images.decoder.bands
    if image.ndim != 3 or image.shape[2] != len(bands) or not image.size:
        raise DataError(f"found an array {image.shape}, expected (H, W, {len(bands)}): {', '.join(bands)}")
    if valid is None:
        valid = np.isfinite(image).all(2)
    if valid.shape != image.shape[:2]:
        raise DataError(f"found valid of {valid.shape}, expected {image.shape[:2]} as the image")
    decoder, values = network.images.decoder, Values(network.images.decoder)
    stored = Bands(image, bands, valid, units=(None,) * len(bands))
    calibrated = decoder.values(stored)
    scaled = decoder.scaled(calibrated, Item("array", (Path("array"),)))
    values.add(stored, calibrated)
    _require_range(values, "array", options)
    for note in values.notes():
        warnings.warn(note, stacklevel=2)
    scene = Rows(np.where(valid[..., None], scaled, np.uint8(0)), valid)
    height, width = valid.shape
    windows = options.plan(height, width, network)
    strips = _clouds(network, iter([scene]), windows, options.flips)
    layers: dict[str, list[np.ndarray]] = {"probability": [], "entropy": []}
    masks = list(_masks(strips, options, {name: parts.append for name, parts in layers.items()}, defaultdict(float)))
    return Result(np.concatenate(masks), *(np.concatenate(parts) for parts in layers.values()))


def predict_scene(
    network: CloudNetwork,
    path: str | Path | Product,
    outputs: Mapping[str, Path],
    options: Options | None = None,
    *,
    tick: Tick = lambda done, total: None,
) -> Summary:
    """The masks of a scene in a file, written to files. Reading, computing and writing overlap in time.

    Args:
        path: whatever the project reads: a GeoTIFF or another raster of GDAL, a PNG, JPEG or BMP, or the folder or
            archive of a product, whose reflectance the network gets if it learnt from reflectance.
        outputs: where to write which layer; "mask", "probability" and "entropy" as cloud-optimised GeoTIFF on the
            scene's own grid, or as PNG, by the name's end; "quicklook" as PNG. The mask is put in place last. A folder
            .NAME.part beside it holds what is not finished; one that an earlier attempt left is removed.
        tick: called with the number of windows that are done, and how many there are.

    Raises:
        DataError: the scene cannot be used, or an output cannot be written; none of the outputs is half there.
    """
    import rasterio

    options, began, decoder = options or Options(), time.perf_counter(), network.images.decoder
    product = path if isinstance(path, Product) else open_product(Path(path)) if is_product(Path(path)) else None
    if product is None:
        path = Path(str(path))
        grid, read = grid_of(path), partial(slabs, path)
    else:
        decoder = product.decoder(decoder)
        grid, read = grid_of_product(product, decoder), partial(slabs_of_product, product)
    try:
        windows = options.plan(grid.height, grid.width, network)
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from None
    image_small, mask_small, values = Thumbnail(grid), Thumbnail(grid), Values(decoder)
    sums: dict[str, float] = defaultdict(float)

    def scene() -> Iterator[Rows]:
        for slab in read(decoder, grid, values.add):
            image_small.add(slab.layer)
            yield slab

    settings = {key.upper(): value for key, value in asdict(options).items() if value is not None}
    made = {"MODEL": network.name, "VERSION": f"{VERSION}, commit {commit()}", **settings}
    tags = {f"ASDA_{key}": str(value) for key, value in made.items()}
    scratch = outputs["mask"].with_name(f".{outputs['mask'].name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    with ExitStack() as stack:
        with writing(outputs["mask"]):
            scratch.mkdir(parents=True)
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        # Without a limit GDAL keeps what it read and wrote in up to a twentieth of the machine's memory.
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE))
        decoded = stack.enter_context(ahead(scene(), AHEAD))
        strips = stack.enter_context(ahead(_clouds(network, decoded, windows, options.flips, tick), AHEAD))
        layers = {}
        for name, kind in (("probability", SHARE), ("entropy", SHARE), ("mask", MASK)):
            if name in outputs:
                layers[name] = stack.enter_context(closing(Output(outputs[name], grid, kind, scratch, tags)))
        for strip in _masks(strips, options, {name: layer.add for name, layer in layers.items()}, sums):
            layers["mask"].add(strip)
            mask_small.add(strip)
        _require_range(values, path, options)
        if "quicklook" in outputs:
            write_quicklook(outputs["quicklook"], image_small, mask_small, decoder.bands, scratch)
        for layer in layers.values():
            layer.finish()
    valid, seconds = sums["valid"] or float("nan"), time.perf_counter() - began
    shares = sums["cloud"] / valid, sums["valid"] / (grid.height * grid.width), sums["entropy"] / valid
    notes, images = values.notes(), network.images
    if images.geometry == "crop" and min(grid.height, grid.width) < images.size:
        crop = f"the {images.size} pixels that the network was trained on"
        notes.append(f"the scene is smaller than {crop}, and its mask less sure; give a larger piece if there is one")
    return Summary(*shares, seconds, values.outside_share, NOTES.join(notes))


def _require_range(values: Values, path: object, options: Options) -> None:
    """Raise a DataError if too many values lie outside what the scaling knows: all of them became 0 or 255."""
    if values.outside_share > options.outside:
        raise DataError(f"{path}: {values.misfit()}")


def _clouds(
    network: CloudNetwork, slabs: Iterator[Rows], windows: Plan, flips: bool, tick: Tick = lambda done, total: None
) -> Iterator[Rows]:
    """The probability of cloud (h, W), from the top down."""
    predict_batch = partial(_mean_of_flips, network.cloud) if flips else network.cloud
    at_once = max(1, BATCH // math.prod(windows.seen))
    with ThreadPoolExecutor(network.workers, initializer=network.settle) as pool:
        yield from blended(predict_batch, slabs, windows, at_once=at_once, apply=pool.map, tick=tick)


def _mean_of_flips(predict_batch: PredictBatch, windows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    turns = [np.s_[:, ::down, ::across] for down in (1, -1) for across in (1, -1)]
    # Copied, since torch takes no negative stride, not even of an axis of one pixel, which NumPy calls contiguous.
    return np.mean([predict_batch(windows[turn].copy(), size)[turn] for turn in turns], axis=0)


def _masks(
    strips: Iterator[Rows], options: Options, write: Mapping[str, Write], sums: dict[str, float]
) -> Iterator[np.ndarray]:
    """The mask's strips; the other layers are written, and sums of cloud, valid and entropy taken, as they pass."""

    def decided() -> Iterator[np.ndarray]:
        for probability, valid in strips:
            p = np.clip(probability, np.float32(1e-7), np.float32(1 - 1e-7))
            entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))  # in bits
            sums["valid"] += int(valid.sum())
            sums["entropy"] += float(entropy.sum(where=valid, dtype=np.float64))
            for name, layer in (("probability", probability), ("entropy", entropy)):
                if name in write:
                    write[name](np.where(valid, layer, np.float32("nan")))
            yield np.where(valid, (probability > options.threshold).view(np.uint8), np.uint8(IGNORE))

    masks = decided()
    if options.min_cloud > 1:
        masks = without_small(masks, options.min_cloud)
    if options.buffer:
        masks = dilated(masks, options.buffer)
    for strip in masks:
        sums["cloud"] += np.count_nonzero(strip == CLOUD)
        yield strip
