"""The checked images of one domain, large ones cut into tiles, as everything else sees them."""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, product
from pathlib import Path
from typing import TypeVar, overload

import numpy as np

from datasets.cache import Cache
from datasets.decode import label_values
from datasets.decoded import Decoded
from datasets.decoder import Decoder, require_same_place
from datasets.files import Item, Window, raise_all, unique
from datasets.scaling import Stretch
from datasets.values import LIMIT
from utils.errors import DataError
from utils.output import progress_bar

PARALLEL = 64  # items that are read ahead
CLASSES = {"clear": 0, "cloud": 1}
R = TypeVar("R")
Keys = tuple[str, str | None]  # of an image and its label in the cache


@dataclass(frozen=True)
class ImageSet(Sequence[Item]):
    """Checked images of a domain and how to read them; `cached` holds what was decoded before, by name."""

    items: tuple[Item, ...]
    decoder: Decoder
    cache: Cache | None = None
    keys: Mapping[str, Keys] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        return self.items[index]

    def read(self, item: Item, *, masked: bool = True) -> Decoded:
        """Pixels of one of the images. Without `masked` its label is left as it is where the image is not valid; then
        nothing of an image that comes from the cache is in memory before it is looked at."""
        if self.cache is None or item.name not in self.keys:
            return self.decoder.read(item, masked=masked)
        image, label = self.keys[item.name]
        whole = item._replace(window=None, label_window=None)
        decoded = self.cache.image(image, len(self.decoder.bands), lambda: self.decoder.image(whole))
        if item.window is not None:
            decoded = decoded.cut(item.window)
        if item.label is None:
            return decoded
        classes = self.cache.label(label, lambda: self.decoder.label(whole)) if label else self.decoder.label(whole)
        if item.label_window is not None:
            classes = classes[item.label_window.slices]
        return self.decoder.labelled(decoded, classes, item, masked=masked)

    def only(self, names: Iterable[str], listed_in: Path) -> "ImageSet":
        """The images of these names, in their order here; raises DataError if there is none of some name, or there are
        no names, in the file that they are `listed_in`."""
        if not (wanted := set(names)):
            raise DataError(f"{listed_in}: names no image; make it again with the stage that wrote it")
        if missing := sorted(wanted - {item.name for item in self.items}):
            gone = f"{len(missing)} image(s) that are no longer there, such as {missing[0]!r}"
            raise DataError(f"{listed_in}: names {gone}; restore them")
        return replace(self, items=tuple(item for item in self.items if item.name in wanted))

    def with_labels(self, folder: Path, label_map: Mapping[int, int]) -> "ImageSet":
        """The same images, each with the label FOLDER/NAME.png."""
        items = tuple(item._replace(label=folder / f"{item.name}.png", label_window=None) for item in self.items)
        keys = {name: (image, None) for name, (image, _) in self.keys.items()}
        return replace(self, items=items, decoder=replace(self.decoder, label_map=dict(label_map)), keys=keys)


def checked(
    items: Sequence[Item],
    decoder: Decoder,
    what: str,
    cache: Cache | None = None,
    tile: int | None = None,
    *,
    taught: bool = False,
) -> "ImageSet":
    """Decode every file once, several at a time, into the cache if there is one; leave images without data out, and
    cut those with a side of more pixels than `tile` into `tiles`. Raises a DataError that lists all files that cannot
    be used or, if their labels are to be `taught`, says that there is no clear or no cloudy pixel."""
    classes = set[str]()

    def inspect_item(item: Item) -> tuple[list[Item], Keys | None, Counter[str]]:
        key = None if cache is None else cache.key(item, decoder)
        decoded = ImageSet((item,), decoder, cache, {item.name: key} if key else {}).read(item)
        if decoded.label is not None:
            require_same_place(item, decoded.height, decoded.width)
            classes.update(name for name, value in CLASSES.items() if (decoded.label == value).any())
        thin = decoded.image[::8, ::8][decoded.valid[::8, ::8]]  # of an entry of the cache not all of it is read
        ends = Counter(values=thin.size, outside=int(((thin == 0) | (thin == 255)).sum()))
        return (tiles(item, decoded, tile) if decoded.valid.any() else []), key, ends

    results = list(in_parallel(inspect_item, items, f"checking {what}"))
    faults = [str(result) for result in results if isinstance(result, DataError)]
    found = [result for result in results if not isinstance(result, DataError)]
    kept, twice = unique(part for parts, *_ in found for part in parts)
    raise_all([*faults, *twice], what)
    keys = {part.name: key for parts, key, _ in found if key is not None for part in parts}
    if not kept:
        raise DataError(f"{what}: none of its {len(items)} image(s) holds a pixel of data; see the domain's nodata")
    ends = sum((ends for *_, ends in found), Counter[str]())
    if isinstance(decoder.scaling, Stretch) and ends["outside"] > LIMIT * ends["values"]:
        low, high = min(decoder.scaling.low), max(decoder.scaling.high)
        fix = "mend the domain's scaling, or its scale and offset"
        raise DataError(f"{what}: most values lie outside the range {low:g} to {high:g} that the scaling knows; {fix}")
    if taught and (missing := [name for name in CLASSES if name not in classes]):
        label = next(item.label for item in items if item.label is not None)
        lacking = f"no pixel is {' or '.join(missing)} by the label_map {dict(decoder.label_map)}"
        values = ", ".join(map(str, np.unique(label_values(label))))
        raise DataError(
            f"{what}: found labels in which {lacking}, expected both classes to learn from; {label} holds {values}: "
            "set the domain's label_map, or give other images"
        )
    if empty := sum(not parts for parts, *_ in found):
        print(f"{what}: {empty} of {len(items)} images hold no data and are left out")
    return ImageSet(tuple(kept), decoder, cache, keys)


def tiles(item: Item, decoded: Decoded, side: int | None) -> list[Item]:
    """An image, or the tiles with data of one that has more than `side` pixels in a direction.

    Tiles have at most `side` pixels in each direction and cover the part with data evenly, wherever that lies. A tile
    is an image of its own, named by the place of its corner in that part.
    """
    height, width = decoded.valid.shape
    if side is None or max(height, width) <= side:
        return [item]
    cut = []
    for top, left in product(corners(height, side), corners(width, side)):
        if decoded.valid[top : top + side, left : left + side].any():
            window = Window(decoded.top + top, decoded.left + left, min(side, height), min(side, width))
            name, scene = f"{item.name}_{top:05d}_{left:05d}", item.scene or item.name
            cut.append(item._replace(name=name, window=window, label_window=window, scene=scene))
    return cut


def in_parallel(inspect: Callable[[Item], R], items: Sequence[Item], what: str) -> Iterator[R | DataError]:
    """What `inspect` returns or raises for each item, in their order; in threads, a bounded number ahead."""

    def attempt(item: Item) -> R | DataError:
        try:
            return inspect(item)
        except DataError as error:
            return error

    parts = (items[begin : begin + PARALLEL] for begin in range(0, len(items), PARALLEL))
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        results = chain.from_iterable(pool.map(attempt, part) for part in parts)
        yield from progress_bar(results, desc=what, total=len(items), unit="image", leave=False)


def corners(length: int, side: int) -> list[int]:
    """Where windows of `side` begin that cover `length` evenly, as few as possible."""
    count = math.ceil(length / side)
    return [0] if count <= 1 else [round(i * (length - side) / (count - 1)) for i in range(count)]
