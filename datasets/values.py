"""What the values of an image say of it: their range, and what in them looks like a mistake."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from datasets.decode import Bands
from datasets.decoder import Decoder
from datasets.scaling import Stretch

FILLS = (-32768, -9999, 65535)  # what tools write where there is no data, and may not declare
FAR = 0.1  # of the range of all other values: what is farther from them than this is no measurement
DARK = 0.5  # percentile
SAMPLE = 500  # pixels of each piece that the dark values are taken from
OFFSET = "as Sentinel-2's offset since processing baseline 04.00"
NAMED = 20  # further images that a note of several names
MOST, LIMIT = 0.5, 0.9  # shares of the values outside the scaling's range that are worth a word, and a refusal


class Values:
    """The valid pixels of an image as a decoder sees them, added up piece by piece.

    Attributes:
        named: whether the file names its bands itself.
        pixels: how many were added.
        outside: how many values of them (pixels times bands) lie beyond the range that the scaling knows.
        partly_zero: pixels, valid or not, that are 0 in some bands and not in all.
        units: (scale, offset) of each band by the file's own tags, or None.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.named = True
        self.units: tuple[float, float] | None = None
        self.pixels = self.outside = self.partly_zero = 0
        self.holding: Counter[int] = Counter()  # pixels of each of FILLS
        # lowest and highest value of each band: of all, and of all pixels without any of FILLS
        self.every = self.others = (np.empty(0), np.empty(0))
        self.stored = (np.inf, -np.inf)  # lowest and highest stored value but FILLS
        self.sample: list[np.ndarray] = []

    def add(self, stored: Bands, pixels: np.ndarray) -> None:
        """Add a piece: the bands in use as they are stored, their mask, and what the decoder makes of the values."""
        self.named &= stored.named
        self.units = next(iter(stored.units), None)
        zero = stored.pixels == 0
        self.partly_zero += int((zero.any(2) & ~zero.all(2)).sum())
        inside = ... if stored.mask.all() else stored.mask
        bands = pixels.shape[2]
        raw, values = (array[inside].reshape(-1, bands) for array in (stored.pixels, pixels))
        if not len(values):
            return
        self.pixels += len(values)
        if isinstance(scaling := self.decoder.scaling, Stretch):
            low, high = np.asarray(scaling.low, np.float32), np.asarray(scaling.high, np.float32)
            self.outside += int(((values < low) | (values > high)).sum())
        self.every = _wider(self.every, values)
        filled = np.zeros(len(values), bool)
        for fill in FILLS if raw.dtype != np.uint8 else ():
            here = (raw == fill).any(1)
            self.holding[fill] += int(here.sum())
            filled |= here
        if filled.any():
            raw, values = raw[~filled], values[~filled]
        if len(values):
            self.others = _wider(self.others, values)
            self.stored = min(self.stored[0], float(raw.min())), max(self.stored[1], float(raw.max()))
            self.sample.append(values[:: max(1, len(values) // SAMPLE)].astype(np.float32))

    @property
    def fills(self) -> list[int]:
        """Those of `FILLS` that pixels hold, far from all other values or alone."""
        low, high = self.stored
        far = FAR * (high - low)
        return [fill for fill, count in self.holding.items() if count and not low - far <= fill <= high + far]

    @property
    def range(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The lowest and the highest value of each band, without `fills`; empty if there is none."""
        low, high = self.others if self.fills else self.every
        return tuple(map(float, low)), tuple(map(float, high))

    @property
    def dark(self) -> tuple[float, ...]:
        """The 0.5 percentile of each band, of a sample, without values that look like fill; empty if there is none."""
        return tuple(map(float, np.percentile(np.concatenate(self.sample), DARK, axis=0))) if self.sample else ()

    @property
    def outside_share(self) -> float:
        """Share of the values that lies outside the scaling's range, in [0, 1]."""
        return self.outside / (self.pixels * len(self.decoder.bands)) if self.pixels else 0.0

    def notes(self) -> list[str]:
        """A sentence for everything that should be known before a mask of this image is believed; what is its own
        alone stands in brackets at the end."""
        bands, (low, high), scaling = self.decoder.bands, self.range, self.decoder.scaling
        notes = []
        if not self.named:
            order = ", ".join(self.decoder.file_bands or bands)
            notes.append(
                f"the file does not name its bands, which are taken for {order}, in this order; "
                "if they are others, mend the domain's bands"
            )
        notes += [
            f"pixels hold {fill}, far from all other values, and count as data; set the domain's nodata "
            f"({self.holding[fill] / self.pixels:.2%} of them)"
            for fill in self.fills
        ]
        if flat := [f"{band} {a:g}" for band, a, b in zip(bands, low, high, strict=False) if a == b]:
            notes.append(f"a band has one value at every pixel, expected many; is the file whole? ({', '.join(flat)})")
        if self.outside_share > MOST:
            notes.append(self.misfit())
        known = scaling.dark if isinstance(scaling, Stretch) and scaling.dtype != "uint8" else None
        if known and self.dark and (shift := shift_between(self.dark, known)):
            notes.append(f"all bands are about {shift:+g} off those of training, {OFFSET}; see the domain's offset")
        return notes

    def misfit(self) -> str:
        """That values lie outside the range that the scaling knows."""
        scaling, (low, high) = self.decoder.scaling, self.range
        assert isinstance(scaling, Stretch)
        found = f"{min(low):g} to {max(high):g}" if low else ", ".join(map(str, self.fills))
        known = f"expected {min(scaling.low):g} to {max(scaling.high):g}"
        return (
            "most values lie outside the range that the scaling knows; see the domain's scale and offset "
            f"({self.outside_share:.1%} of them, found {found}, {known})"
        )


def grouped(notes: Iterable[tuple[str, str]]) -> list[str]:
    """A line for all images of one note, of pairs of a name and a note; what is in brackets is the first's."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for name, note in notes:
        kinds.setdefault(note.partition(" (")[0], []).append((name, note))
    lines = []
    for (name, note), *others in kinds.values():
        more = ", ".join([other for other, _ in others[:NAMED]] + ["..."] * (len(others) > NAMED))
        lines.append(f"{name}: {note}" + f", and so {len(others)} more: {more}" * bool(others))
    return lines


def shift_between(dark: Sequence[float], other: Sequence[float]) -> float | None:
    """The constant by which every band of one is above the other, if it is one of Sentinel-2's offsets: 1,000 of 10,000
    levels, or 0.1 of reflectance, up to 30 %."""
    step = 1000 if max(map(abs, (*dark, *other))) > 10 else 0.1
    difference = np.subtract(dark, other)
    shift = float(np.copysign(step, difference.mean()))
    return shift if (abs(difference - shift) <= 0.3 * step).all() else None


def _wider(known: tuple[np.ndarray, np.ndarray], values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = values.min(0), values.max(0)
    return (np.minimum(known[0], low), np.maximum(known[1], high)) if len(known[0]) else (low, high)
