"""What a weights file says of the images that its network is for; read and written without torch."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.load import recorded_config
from datasets.decode import RGB
from datasets.decoder import Decoder
from datasets.scaling import recorded_scaling
from utils.errors import ConfigError, WeightsError
from utils.records import reading

SMALLEST, LARGEST = 32, 4096  # pixels: side of a network's input


@dataclass(frozen=True)
class Images:
    """The images that a network was trained for.

    Attributes:
        decoder: how its files are understood: bands, scaling, where there is no data.
        size: side in pixels of what the network saw in training.
        geometry: "crop", windows at native resolution; "letterbox", images scaled to `size`.
        tile: with "letterbox", the longer side of the largest image that was scaled as a whole; None: there was none.
    """

    decoder: Decoder
    size: int
    geometry: str
    tile: int | None

    @property
    def metadata(self) -> dict[str, str]:
        """As it stands in a weights file."""
        decoder = self.decoder
        target = {name: getattr(decoder, name) for name in ("scaling", "nodata", "scale", "offset")}
        target["bands"] = decoder.file_bands
        seen = {"size": self.size, "geometry": self.geometry, "tile": self.tile}
        return {"data": json.dumps({"bands": decoder.bands, **seen, "target": target})}


def images_of(path: Path, metadata: Mapping[str, str]) -> Images:
    """What a weights file says of the images that its network is for.

    A file from before this was written down means 8-bit red, green and blue, and has the rest in the config.yaml
    beside it.

    Raises:
        WeightsError: it says nothing that can be used.
    """
    if "data" not in metadata:
        config = path.parent / "config.yaml"
        try:
            data = recorded_config(config)["data"]
            return _checked(Images(Decoder(RGB), data["size"], data["geometry"], data.get("tile")))
        except (ConfigError, ValueError, KeyError, TypeError, AttributeError):
            raise WeightsError(
                f"{path}: does not say what images it is for, and {config} does not either, expected data.size and "
                "data.geometry in it; put the run's config.yaml beside the file, or train again"
            ) from None
    fix = "write the file again with the stage that made it"
    with reading(path, "a weights file with a sound record of its data", fix, WeightsError):
        record = json.loads(metadata["data"])
        target, bands = record["target"], _bands(record["bands"])
        file_bands = None if target["bands"] is None else _bands(target["bands"])
        scaling, units = (
            recorded_scaling(target["scaling"], len(bands)),
            {of: target.get(of) for of in ("scale", "offset")},
        )
        decoder = Decoder(bands, file_bands, scaling, target["nodata"], **units)
        return _checked(Images(decoder, record["size"], record["geometry"], record["tile"]))


def _bands(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"found the bands {names}, expected a list of names")
    return tuple(names)


def _checked(images: Images) -> Images:
    """The same, or a ValueError or TypeError about a value that means nothing."""
    size, tile, rule = images.size, images.tile, images.decoder.nodata
    if type(size) is not int or not SMALLEST <= size <= LARGEST:
        raise ValueError(f"found size {size!r}, expected {SMALLEST} to {LARGEST} pixels")
    if tile is not None and (type(tile) is not int or tile < size):
        raise ValueError(f"found tile {tile!r}, expected {size} pixels, the size, or more, or null")
    if images.geometry not in ("crop", "letterbox"):
        raise ValueError(f"found geometry {images.geometry!r}, expected crop or letterbox")
    if not isinstance(rule, str | int | float) or isinstance(rule, bool):
        raise ValueError(f"found nodata {rule!r}, expected a rule or a number")
    for unit in (images.decoder.scale, images.decoder.offset):
        if unit is not None and (type(unit) not in (int, float) or not math.isfinite(unit)):
            raise ValueError(f"found scale or offset {unit!r}, expected a number or null")
    return images
