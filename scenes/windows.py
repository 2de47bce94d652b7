"""Windows over a scene: where they lie, how much each counts where, and the probabilities blended row by row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from datasets.geometry import fitted_size, scale_to
from scenes.network import CloudNetwork, Images
from utils.errors import ConfigError

BLEND = 16  # pixels over which one window hands over to the next; a feature of most networks is that large
AT_ONCE = 2**18  # pixels of network input in one forward
WHOLE = 4096  # pixels: the longest side of an image that is looked at as a whole


class Rows(NamedTuple):
    """Whole rows of a scene: `layer` (h, W, C) uint8 or (h, W) float32; `valid` (h, W) bool, where there is data."""

    layer: np.ndarray
    valid: np.ndarray


class Span(NamedTuple):
    """One window along one axis of the scene.

    Attributes:
        start, stop: the pixels that the network sees.
        inner: those of them that count.
        weight: how much each of those counts, float32 in (0, 1].
    """

    start: int
    stop: int
    inner: slice
    weight: np.ndarray

    @property
    def within(self) -> slice:
        """`inner` counted from `start`."""
        return slice(self.inner.start - self.start, self.inner.stop - self.start)


class Plan(NamedTuple):
    """The windows of a scene, rows by columns; `seen` is the size (h, w) to which the network gets each scaled.

    With `whole`, there is one window, and borders without data are cut off before it is scaled, as in training.
    """

    rows: list[Span]
    columns: list[Span]
    seen: tuple[int, int]
    whole: bool


def spans(length: int, window: int, overlap: int) -> list[Span]:
    """Cover `length` pixels by windows that step by `window - overlap`; the last one ends with the scene.

    Weights are a partition of unity: between two windows one number rises from 0 to 1 in the middle of what they share,
    and a window has what has risen at its beginning less what has risen at its end, so that the sum telescopes to 1.
    What lies further out is seen by the window as surroundings and counts for nothing.
    """
    step, window = window - overlap, min(window, length)
    starts = [*range(0, length - window, step), length - window]
    # Where one window hands over to the next: the middle of what they share, and over how many pixels.
    between = [
        ((after + start + window) / 2, min(BLEND, max(1, start + window - after))) for start, after in pairwise(starts)
    ]
    found = []
    for start, edges in zip(starts, pairwise([(-math.inf, 1), *between, (math.inf, 1)]), strict=True):
        place = np.arange(start, start + window) + 0.5
        begun, following = (np.clip((place - middle) / reach + 0.5, 0, 1) for middle, reach in edges)
        weight = begun - following
        counts = np.flatnonzero(weight)
        first, last = int(counts[0]), int(counts[-1]) + 1
        inner = slice(start + first, start + last)
        found.append(Span(start, start + window, inner, weight[first:last].astype(np.float32)))
    return found


def plan(height: int, width: int, images: Images, window: int | None = None, overlap: int | None = None) -> Plan:
    """The windows of a scene of (height, width) pixels.

    By default a window holds what the network was trained and scored on: the training crop at native resolution, or a
    tile scaled to the training size. It overlaps the next one by a quarter. What is smaller than a tile is looked at as
    a whole.

    Raises:
        ConfigError: windows that do not move, or an image that is too large to be looked at as a whole.
    """
    scale, longest = 1.0, images.size
    if images.geometry == "letterbox":
        longest = images.tile or window or max(height, width)
        scale = images.size / longest
        if max(height, width) <= longest:
            if max(height, width) > WHOLE:
                raise ConfigError(
                    f"found a scene of {width}x{height} pixels, and the network knows only whole images, scaled to "
                    f"{images.size} pixels; give --window, the pixels that are scaled to {images.size} at a time"
                )
            seen = fitted_size(height, width, images.size)
            return Plan(spans(height, height, 0), spans(width, width, 0), seen, whole=True)
    window = longest if window is None else window
    overlap = window // 4 if overlap is None else overlap
    if not 0 <= overlap < window:
        raise ConfigError(f"the overlap is {overlap}, expected 0 or more and less than the window of {window} pixels")
    rows, columns = spans(height, window, overlap), spans(width, window, overlap)
    seen_height, seen_width = (max(1, round(scale * min(window, length))) for length in (height, width))
    return Plan(rows, columns, (seen_height, seen_width), whole=False)


def blended(
    network: CloudNetwork, slabs: Iterator[Rows], windows: Plan, *, flips: bool, tick: Callable[[int], object]
) -> Iterator[Rows]:
    """The probability of cloud of a scene, from the top down, in rows that no later window changes.

    Args:
        slabs: the scene's 8-bit bands from the top down, in any number of rows at a time.
        flips: take the mean over the window and its three mirror images.
        tick: called with the number of windows that are done.

    Yields:
        Probabilities in [0, 1], of no meaning where not valid. Windows without data are not computed.
    """
    if windows.whole:
        yield _whole(network, slabs, flips=flips)
        tick(1)
        return
    image, valid = next(slabs)
    top = 0  # the scene's row at which both begin
    total = np.zeros((0, valid.shape[1]), np.float32)  # from the first row that is not given yet
    finals = [*(row.inner.start for row in windows.rows[1:]), windows.rows[-1].stop]
    at_once = max(1, AT_ONCE // math.prod(windows.seen))
    with ThreadPoolExecutor(network.workers, initializer=network.settle) as pool:
        for row, final in zip(windows.rows, finals, strict=True):
            image, valid, top = image[row.start - top :], valid[row.start - top :], row.start
            while top + len(valid) < row.stop:
                more = next(slabs)
                image, valid = np.concatenate([image, more.layer]), np.concatenate([valid, more.valid])
            counted = row.inner.stop - row.inner.start
            total = np.concatenate([total, np.zeros((counted - len(total), valid.shape[1]), np.float32)])
            with_data = [column for column in windows.columns if valid[row.within, column.inner].any()]
            parts = [with_data[begin : begin + at_once] for begin in range(0, len(with_data), at_once)]
            seen = partial(_seen, network, image[: row.stop - top], windows.seen, flips)
            for part, clouds in zip(parts, pool.map(seen, parts), strict=True):
                for column, cloud in zip(part, clouds, strict=True):
                    weight = row.weight[:, None] * column.weight
                    total[:, column.inner] += weight * cloud[row.within, column.within]
            tick(len(windows.columns))
            done = final - row.inner.start
            yield Rows(total[:done], valid[row.within][:done])
            total = total[done:]


def _seen(
    network: CloudNetwork, image: np.ndarray, scaled: tuple[int, int], flips: bool, columns: Sequence[Span]
) -> np.ndarray:
    windows = [scale_to(image[:, column.start : column.stop], *scaled) for column in columns]
    return _look(network, np.stack(windows), (len(image), columns[0].stop - columns[0].start), flips=flips)


def _whole(network: CloudNetwork, slabs: Iterator[Rows], *, flips: bool) -> Rows:
    parts = list(slabs)
    image, valid = (np.concatenate(layers) for layers in zip(*parts, strict=True))
    cloud = np.zeros(valid.shape, np.float32)
    rows, columns = np.flatnonzero(valid.any(1)), np.flatnonzero(valid.any(0))
    if len(rows):
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        height, width = cloud[box].shape
        scaled = scale_to(image[box], *fitted_size(height, width, network.images.size))
        cloud[box] = _look(network, scaled[None], (height, width), flips=flips)[0]
    return Rows(cloud, valid)


def _look(network: CloudNetwork, windows: np.ndarray, size: tuple[int, int], *, flips: bool) -> np.ndarray:
    if not flips:
        return network.cloud(windows, size)
    mirrored = [
        (slice(None), slice(None, None, down), slice(None, None, across)) for down in (1, -1) for across in (1, -1)
    ]
    views = [network.cloud(np.ascontiguousarray(windows[turn]), size)[turn] for turn in mirrored]
    return np.stack(views).mean(0)
