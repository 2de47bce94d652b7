"""What a domain's files hold and what is wrong with them, found by decoding each once."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.cache import content_hash
from datasets.decode import classes_of, label_values, read_palette
from datasets.decoder import Decoder, require_same_place, require_size
from datasets.files import Item
from datasets.images import in_parallel
from datasets.readers import Published
from datasets.values import LIMIT, OFFSET, Values, grouped, shift_between
from utils.errors import DataError
from utils.labels import IGNORE

CLEAR = 0
WHITE = 250  # red, green and blue of what is painted white have at least this
LISTED = 20  # files that are named for one cause
OTHER_UNIT = 20  # times: an image with a largest value so far from that of most may be in another unit


class ImageFacts(NamedTuple):
    """One image: its size (H, W), type, values, number of pixels of each kind ("all", "valid", "partly_zero", "clear",
    "cloud"), a hash of its content, the values of its label, and what is odd about that."""

    size: tuple[int, int]
    dtype: str
    values: Values
    pixels: Counter[str]
    content: str
    label_values: tuple[int, ...] = ()
    odd: str = ""


@dataclass
class PartSummary:
    """The images of one part of a domain, added up one by one; memory grows by a hash and a name for each."""

    images: int = 0
    labelled: int = 0
    empty: int = 0
    pixels: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    dtypes: dict[str, list[Item]] = field(default_factory=dict)
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    scenes: set[str] = field(default_factory=set)
    contents: dict[str, list[str]] = field(default_factory=dict)
    label_values: dict[tuple[int, ...], list[Item]] = field(default_factory=dict)
    odd: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    dark: list[tuple[float, ...]] = field(default_factory=list)
    units: Counter[tuple[float, float] | None] = field(default_factory=Counter)
    notes: list[tuple[str, str]] = field(default_factory=list)
    outside: int = 0
    tops: list[tuple[str, str, float]] = field(default_factory=list)  # name, type and largest value of each image

    def add(self, item: Item, image: ImageFacts) -> None:
        self.images += 1
        self.labelled += item.label is not None
        self.empty += not image.pixels["valid"]
        self.pixels += image.pixels
        self.sizes[image.size] += 1
        self.dtypes.setdefault(image.dtype, []).append(item)
        low, high = image.values.range
        if low:
            self.low, self.high = tuple(map(min, self.low or low, low)), tuple(map(max, self.high or high, high))
            self.dark.append(image.values.dark)
            self.tops.append((item.name, image.dtype, max(high)))
        self.units[image.values.units] += 1
        self.outside += image.values.outside
        self.notes += [(item.name, note) for note in image.values.notes()]
        if item.scene is not None:
            self.scenes.add(item.scene)
        self.contents.setdefault(image.content, []).append(item.name)
        if item.label is not None:
            self.label_values.setdefault(image.label_values, []).append(item)
        if image.odd:
            self.odd.append(image.odd)

    @property
    def usual_dtype(self) -> str:
        """The type that most images have; only images of one type can be used together."""
        return max(self.dtypes, key=lambda dtype: len(self.dtypes[dtype]), default="")

    @property
    def cloud_share(self) -> float | None:
        """Share of the labelled pixels that is cloud, in [0, 1]."""
        labelled = self.pixels["cloud"] + self.pixels["clear"]
        return self.pixels["cloud"] / labelled if labelled else None

    def facts(self, bands: Sequence[str]) -> dict[str, object]:
        """All of it as plain values, for a table and for JSON."""
        sizes = ", ".join(f"{width}x{height} ({count})" for (height, width), count in self.sizes.most_common(4))
        more = f" and {len(self.sizes) - 4} more" if len(self.sizes) > 4 else ""
        return {
            "images": self.images,
            "labelled": self.labelled,
            "scenes": len(self.scenes) or None,
            "sizes": sizes + more,
            "type": ", ".join(sorted(self.dtypes)),
            "values": {band: [low, high] for band, low, high in zip(bands, self.low, self.high, strict=False)},
            "cloud_share": self.cloud_share,
            "no_data_share": 1 - self.pixels["valid"] / self.pixels["all"] if self.images else None,
            "some_bands_zero_share": self.pixels["partly_zero"] / self.pixels["all"] if self.images else None,
            "images_without_data": self.empty,
        }


def inspect_image(item: Item, decoder: Decoder) -> ImageFacts:
    """Decode one image and its label; raises DataError if one of them cannot be used."""
    stored, values = decoder.stored(item), Values(decoder)
    pixels, valid = decoder.values(stored), stored.mask
    if decoder.scaling is not None:
        decoder.require_type(pixels.dtype, item)
    values.add(stored, pixels)
    counts = Counter(all=valid.size, valid=int(valid.sum()), partly_zero=values.partly_zero)
    held, odd = np.zeros(0, np.uint8), ""
    if item.label is not None:
        of_file = label_values(item.label, item.label_window)
        label = classes_of(item.label, of_file, decoder.label_map)
        require_size(label, item, *valid.shape)
        require_same_place(item, *valid.shape)
        held = np.unique(of_file)
        odd = _contradicted(item.label, held.tolist(), decoder.label_map)
        known = valid & (label != IGNORE)
        counts.update(clear=int((label[known] == 0).sum()), cloud=int((label[known] == 1).sum()))
    hashes = [content_hash(path) for path in item.files if path.is_file()]
    content = hashlib.blake2b("".join(hashes).encode(), digest_size=16).hexdigest()
    return ImageFacts(valid.shape, str(pixels.dtype), values, counts, content, tuple(held.tolist()), odd)


def _contradicted(path: Path, values: Sequence[int], label_map: Mapping[int, int]) -> str:
    """A sentence if what a label's palette paints white is clear and nothing else."""
    palette = read_palette(path)
    white = [value for value in values if min(palette.get(value, (0,))) >= WHITE]
    if {label_map[value] for value in white} != {CLEAR}:
        return ""
    found = f"found the value {white[0]}, clear by the label_map, painted white by its palette"
    return f"{path}: {found}, expected white for cloud; mend the domain's label_map, or the palette"


def _mixed(values: Mapping[tuple[int, ...], Sequence[Item]]) -> list[str]:
    """A sentence for each label of 255 without 1, where others hold both: is 255 cloud there, and nothing here?"""
    both = next((items[0].label for found, items in values.items() if {1, IGNORE} <= set(found)), None)
    alone = [item.label for found, items in values.items() if IGNORE in found and 1 not in found for item in items]
    if both is None:
        return []
    fix = "if 255 is cloud in one of them, write these labels alike, or give each kind a domain of its own"
    lines = [f"{label}: found 255 without 1, expected values as in {both}, which holds both; {fix}" for label in alone]
    return lines[:LISTED] + [f"... and {len(lines) - LISTED} more such labels"] * (len(lines) > LISTED)


def inspect_part(items: Sequence[Item], decoder: Decoder, what: str, faults: Iterable[str] = ()) -> PartSummary:
    """Inspect every image, several at a time; a file that cannot be used is a problem and no error."""
    part = PartSummary(problems=list(faults))
    facts = in_parallel(lambda item: inspect_image(item, decoder), items, f"checking {what}")
    for item, image in zip(items, facts, strict=True):
        if isinstance(image, DataError):
            part.problems.append(str(image))
        else:
            part.add(item, image)
    part.problems += [
        f"{odd[0].image}: found {dtype} pixels ({len(odd)} such image(s)), expected {part.usual_dtype} as in most"
        for dtype, odd in part.dtypes.items()
        if dtype != part.usual_dtype
    ]
    if part.outside > LIMIT * part.pixels["valid"] * len(decoder.bands):
        part.problems.append(f"{what}: most values lie outside the scaling's range; mend the domain's scaling or scale")
    return part


def warnings_of(parts: Mapping[str, PartSummary]) -> list[str]:
    """What would make scores too good or training odd: one content twice, scenes on both sides, one class alone."""
    found = []
    for name, part in parts.items():
        if twice := [names for names in part.contents.values() if len(names) > 1]:
            example = " and ".join(twice[0][:2])
            found.append(f"{name}: {len(twice)} image(s) are there more than once, such as {example}")
        found += [f"{name}: {line}" for line in grouped([*part.notes, *_other_units(part)])]
        if len(part.units) > 1:
            found.append(f"{name}: images differ in their scale and offset tags: {_tags(part)}")
        if part.empty:
            found.append(f"{name}: {part.empty} image(s) hold no data; training and scores leave them out")
        if part.labelled and part.cloud_share in (0.0, 1.0):
            kind = "cloud" if part.cloud_share else "clear"
            found.append(f"{name}: all labelled pixels are {kind}; is label_map right?")
        if part.labelled and part.cloud_share is None:
            found.append(f"{name}: no label holds a pixel that is clear or cloud; is label_map right?")
        found += [*part.odd[:LISTED], *_mixed(part.label_values)]
    if {"train", "eval"} <= set(parts):
        train, held_back = parts["train"], parts["eval"]
        both = "are in train and eval, such as"
        if same := sorted(train.contents.keys() & held_back.contents.keys()):
            names = f"{train.contents[same[0]][0]} (train) and {held_back.contents[same[0]][0]} (eval)"
            found.append(f"{len(same)} image(s) {both} {names}: scores will be too good")
        if shared := sorted(train.scenes & held_back.scenes):
            advice = "scores will be too good; hold back whole scenes, for instance by eval_share"
            found.append(f"{len(shared)} scene(s) {both} {shared[0]}: {advice}")
    return found


def _other_units(part: PartSummary) -> list[tuple[str, str]]:
    """Names of images whose largest value is of another order than that of most, and what to do."""
    tops = [(name, top) for name, dtype, top in part.tops if dtype == part.usual_dtype]
    usual = float(np.median([top for _, top in tops])) if tops else 0.0
    fix = "if it is in another unit, give it scale and offset tags, or a domain of its own"
    return [
        (name, f"its values are of another order than those of most; {fix} (found up to {top:g}, expected {usual:g})")
        for name, top in tops
        if usual > 0 and not usual / OTHER_UNIT < top < usual * OTHER_UNIT
    ]


def between_domains(source: PartSummary, target: PartSummary) -> list[str]:
    """How the values of two domains differ by their tags, or by a constant in all bands."""
    found = []
    if source.units and target.units and source.units.keys() != target.units.keys():
        found.append(
            f"scale and offset tags of the source's images: {_tags(source)}; of the target's: {_tags(target)}; if "
            "their values differ in unit, set scale and offset of the domain without tags"
        )
    kinds = {source.usual_dtype, target.usual_dtype}
    if source.dark and target.dark and len(kinds) == 1 and kinds != {"uint8"}:
        shift = shift_between(*(np.median(part.dark, axis=0).tolist() for part in (target, source)))
        if shift is not None:
            found.append(f"all bands of the target are about {shift:+g} off the source's, {OFFSET}; set target.offset")
    return found


def _tags(part: PartSummary) -> str:
    named = ("none" if unit is None else f"{unit[0]:g} and {unit[1]:g}" for unit in part.units)
    return ", ".join(f"{tags} ({count})" for tags, count in zip(named, part.units.values(), strict=True))


def against_published(parts: Mapping[str, PartSummary], keys: Mapping[str, str], facts: Published | None) -> list[str]:
    """How the counts, each part's or both together with that of its key, and the share of cloud compare with what is
    published."""
    if facts is None:
        return []
    lines = []
    for name, key in keys.items():
        if (expected := facts.images.get(key)) is not None:
            count = sum(part.images for part in parts.values()) if name == "both" else parts[name].images
            lines.append(f"{key}: {count} images, {'as published' if count == expected else f'published: {expected}'}")
    last = parts.get("eval", parts["train"])
    if facts.cloud is not None and last.cloud_share is not None:
        lines.append(f"cloud share {100 * last.cloud_share:.2f} %, published: {facts.cloud:.2f} %")
    return [f"{line} ({facts.note})" if facts.note and "published:" in line else line for line in lines]
