"""Windows over an image: where they lie, how much each counts where, and what is predicted of them, blended by rows."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from config.schema import DataConfig
from datasets.geometry import filled, fitted_size, scale_to
from datasets.images import corners
from engine.data_record import Images
from utils.errors import ConfigError

WINDOW = 512  # pixels: side of a window, where it may be larger than the training crop
LOCAL = ("fpn", "unet", "segformer")  # decoders that take no means over all that they are shown

# Windows (B, h, w, C) uint8 and a size (H, W) to layers (B, ..., H, W) float32 on the grid of that size.
PredictBatch = Callable[[np.ndarray, tuple[int, int]], np.ndarray]


class Rows(NamedTuple):
    """Whole rows of an image: `layer` (h, W, C) uint8 or (..., h, W) float32; `valid` (h, W) bool, where data is."""

    layer: np.ndarray
    valid: np.ndarray


class Span(NamedTuple):
    """A window along one axis: the pixels from `start` to `stop`, and how much each counts, float32 in (0, 1]."""

    start: int
    stop: int
    weight: np.ndarray


class Plan(NamedTuple):
    """The windows of an image, rows by columns; `seen` is the size (h, w) to which the network gets each scaled.

    With `whole`, there is one window, and borders without data are cut off before it is scaled, as in training.
    """

    rows: list[Span]
    columns: list[Span]
    seen: tuple[int, int]
    whole: bool


def spans(length: int, window: int, overlap: int) -> list[Span]:
    """Cover `length` pixels evenly by as few windows as overlap by `overlap` pixels or more.

    Weights are a partition of unity: over what two windows share, one number rises linearly from 0 to 1, and a window
    has what has risen at its beginning less what has risen at its end. The sum telescopes to 1, also where three or
    more windows share a pixel. With half overlap the weights of a window are a tent.
    """
    starts = corners(length - overlap, window - overlap)
    window = min(window, length)
    shared = [(0, 0), *((after, start + window) for start, after in pairwise(starts)), (length, length)]
    found = []
    for start, (before, behind) in zip(starts, pairwise(shared), strict=True):
        place = np.arange(start, start + window) + 0.5
        weight = np.interp(place, before, (0, 1)) - np.interp(place, behind, (0, 1))
        found.append(Span(start, start + window, weight.astype(np.float32)))
    return found


def usual_window(data: Images | DataConfig, architecture: str) -> int | None:
    """The side of the windows in which a network sees an image, in pixels; None: as it was trained.

    Larger windows overlap less, and cost less. A decoder that sees no further than its neighbourhood loses nothing by
    them; deeplab_v2, upernet and dpt are shown the training crop.

    Args:
        architecture: of the network, as it stands in its weights file; one without a decoder has deeplab_v2.
    """
    local = data.geometry == "crop" and json.loads(architecture).get("decoder") in LOCAL
    return max(WINDOW, data.size) if local else None


def plan(
    height: int, width: int, data: Images | DataConfig, window: int | None = None, overlap: int | None = None
) -> Plan:
    """The windows of an image of (height, width) pixels.

    By default a window holds what the network was trained on: with the geometry "crop" the training crop at native
    resolution, with "letterbox" a tile scaled to the training size. What is no larger than a tile, or any image where
    neither tile nor window is given, is seen whole.

    Args:
        window, overlap: in pixels of the image; without an overlap, windows share a quarter of the default window, or
            of their own where that is less.
    """
    scale, largest = 1.0, data.size
    if data.geometry == "letterbox":
        largest = data.tile or window or max(height, width)
        scale = data.size / largest
        if max(height, width) <= largest:
            seen = fitted_size(height, width, data.size)
            return Plan(spans(height, height, 0), spans(width, width, 0), seen, whole=True)
    window = window or largest
    overlap = min(math.ceil(min(window, largest) / 4), window - 1) if overlap is None else overlap
    if not 0 <= overlap < window:
        raise ConfigError(f"the overlap is {overlap}, expected 0 or more and less than the window of {window} pixels")
    seen_height, seen_width = (max(1, round(scale * min(window, length))) for length in (height, width))
    return Plan(spans(height, window, overlap), spans(width, window, overlap), (seen_height, seen_width), whole=False)


def blended(
    predict_batch: PredictBatch,
    slabs: Iterator[Rows],
    windows: Plan,
    *,
    layers: tuple[int, ...] = (),
    at_once: int = 1,
    apply: Callable[..., Iterable[np.ndarray]] = map,
    tick: Callable[[int, int], object] = lambda done, total: None,
) -> Iterator[Rows]:
    """What a network predicts of an image, from the top down, in rows that no later window changes.

    Args:
        slabs: the image's 8-bit bands from the top down, in any number of rows at a time: each window is filled where
            it has no data when it is whole.
        layers: shape of what is predicted for a pixel.
        at_once: windows in one batch.
        apply: `map`, or that of a pool of threads.
        tick: called with the number of windows that are done, and how many there are.

    Yields:
        Layers (*layers, h, W) float32, of no meaning where not valid. Windows without data are not computed.
    """
    if windows.whole:
        yield _predict_whole(predict_batch, slabs, windows, layers)
        tick(1, 1)
        return
    image, valid = next(slabs)
    top, width = 0, valid.shape[1]  # the row of the image at which both begin
    total = np.zeros((*layers, 0, width), np.float32)  # from the first row that is not given yet
    finals = [*(row.start for row in windows.rows[1:]), windows.rows[-1].stop]
    for done, (row, final) in enumerate(zip(windows.rows, finals, strict=True), 1):
        image, valid, top = image[row.start - top :], valid[row.start - top :], row.start
        while top + len(valid) < row.stop:
            more = next(slabs)
            image, valid = np.concatenate([image, more.layer]), np.concatenate([valid, more.valid])
        height = row.stop - top
        total = np.concatenate([total, np.zeros((*layers, height - total.shape[-2], width), np.float32)], axis=-2)
        with_data = [column for column in windows.columns if valid[:height, column.start : column.stop].any()]
        batches = [with_data[begin : begin + at_once] for begin in range(0, len(with_data), at_once)]
        predict = partial(_predict_windows, predict_batch, image[:height], valid[:height], windows.seen)
        for columns, predicted in zip(batches, apply(predict, batches), strict=True):
            for column, layer in zip(columns, predicted, strict=True):
                total[..., column.start : column.stop] += row.weight[:, None] * column.weight * layer
        tick(done * len(windows.columns), len(windows.rows) * len(windows.columns))
        yield Rows(total[..., : final - top, :], valid[: final - top])
        total = total[..., final - top :, :]


def _predict_windows(
    predict_batch: PredictBatch, rows: np.ndarray, valid: np.ndarray, seen: tuple[int, int], columns: list[Span]
) -> np.ndarray:
    places = [np.s_[:, column.start : column.stop] for column in columns]
    windows = [scale_to(filled(rows[place], valid[place]), *seen) for place in places]
    return predict_batch(np.stack(windows), valid[places[0]].shape)


def _predict_whole(predict_batch: PredictBatch, slabs: Iterator[Rows], windows: Plan, layers: tuple[int, ...]) -> Rows:
    image, valid = (np.concatenate(parts) for parts in zip(*slabs, strict=True))
    total = np.zeros((*layers, *valid.shape), np.float32)
    rows, columns = np.flatnonzero(valid.any(1)), np.flatnonzero(valid.any(0))
    if len(rows):
        down, across = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        height, width = valid[down, across].shape
        whole = filled(image[down, across], valid[down, across])
        scaled = scale_to(whole, *fitted_size(height, width, max(windows.seen)))
        total[..., down, across] = predict_batch(scaled[None], (height, width))[0]
    return Rows(total, valid)
