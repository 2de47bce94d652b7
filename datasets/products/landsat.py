"""Landsat 8 and 9, Collection 2, Level 1 and 2: a folder or a tar with a TIFF a band and an MTL file."""

import math
import re
from pathlib import Path, PurePosixPath

from datasets.products.containers import AGAIN, Container
from datasets.products.product import BandFile, Product
from utils.errors import DataError
from utils.records import reading

METADATA = re.compile(r"(?:^|/)L[A-Z]\d\d_\w+_MTL\.txt$")
# Band -> its common names, by STAC's extension eo and by this project's readers.
NAMES = {
    "1": ("coastal",),
    "2": ("blue",),
    "3": ("green",),
    "4": ("red",),
    "5": ("nir08", "nir"),
    "6": ("swir16", "swir1"),
    "7": ("swir22", "swir2"),
    "8": ("pan",),
    "9": ("cirrus",),
    "10": ("lwir11", "thermal1"),
    "11": ("lwir12", "thermal2"),
    "ST_B10": ("lwir11", "thermal1"),
}
THERMAL = ("10", "11")  # of Level 1, which come as radiance
MISSIONS = ("LANDSAT_8", "LANDSAT_9")
NODATA = 0


class MTL:
    """The groups of an MTL file; `value` raises DataError for a key that is not there."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.groups: dict[str, dict[str, str]] = {}
        group: dict[str, str] = {}
        for line in text.splitlines():
            key, _, value = (part.strip() for part in line.partition("="))
            if key == "GROUP":
                group = self.groups.setdefault(value, {})
            elif key != "END_GROUP":
                group[key] = value.strip('"')

    def value(self, group: str, key: str) -> str:
        if (found := self.groups.get(group, {}).get(key)) is None:
            raise DataError(f"{self.path}: has no {key} in the group {group}; {AGAIN}")
        return found

    def number(self, group: str, key: str) -> float:
        text = self.value(group, key)
        with reading(self.path, f"an MTL file with a number as {key}", AGAIN):
            number = float(text)
            if not math.isfinite(number):
                raise ValueError(text)
        return number


def landsat(container: Container, name: str) -> Product:
    """The product whose metadata are the file `name`; raises DataError if they cannot be used."""
    path, folder = container.path / name, PurePosixPath(name).parent
    mtl = MTL(path, container.read(name).decode("utf-8", "replace"))
    if "LANDSAT_METADATA_FILE" not in mtl.groups:
        raise DataError(f"{path}: has no group LANDSAT_METADATA_FILE, expected Collection 2; download that")
    mission, level = mtl.value("IMAGE_ATTRIBUTES", "SPACECRAFT_ID"), mtl.value("PRODUCT_CONTENTS", "PROCESSING_LEVEL")
    if mission not in MISSIONS or level[:2] not in ("L1", "L2"):
        raise DataError(f"{path}: is {level} of {mission}, expected Level 1 or 2 of {' or '.join(MISSIONS)}")
    bands = {}
    for number, names in NAMES.items():
        file = mtl.groups.get("PRODUCT_CONTENTS", {}).get(f"FILE_NAME_BAND_{number}")
        if file is None:
            continue
        if "/" in file or "\\" in file:
            raise DataError(f"{path}: names the file {file!r}, expected one beside it; {AGAIN}")
        there = (folder / file).as_posix()
        opened = container.prefix + there if there in container.names else None
        band = BandFile(container.path / there, opened, 0, _unit(mtl, level, number))
        bands.update({common: band for common in (*names, f"b{number.removeprefix('ST_B')}")})
    if not bands:
        raise DataError(f"{path}: names no file of a band, such as FILE_NAME_BAND_4; {AGAIN}")
    time = "T".join(mtl.value("IMAGE_ATTRIBUTES", key) for key in ("DATE_ACQUIRED", "SCENE_CENTER_TIME"))
    return Product(container.path, bands, NODATA, {"ACQUISITIONDATETIME": time, "SATELLITEID": mission})


def _unit(mtl: MTL, level: str, number: str) -> tuple[float, float] | None:
    """The scale and offset of a band: to reflectance, of Level 1 for the sun's elevation, or to kelvin."""
    if number.startswith("ST"):
        group, of, sun = "LEVEL2_SURFACE_TEMPERATURE_PARAMETERS", "TEMPERATURE", 1.0
    elif level.startswith("L2"):
        group, of, sun = "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS", "REFLECTANCE", 1.0
    elif number in THERMAL:
        return None
    else:
        group, of = "LEVEL1_RADIOMETRIC_RESCALING", "REFLECTANCE"
        elevation = mtl.number("IMAGE_ATTRIBUTES", "SUN_ELEVATION")
        if elevation <= 0:
            raise DataError(f"{mtl.path}: found the sun at {elevation:g} degrees, a night scene, expected a day's")
        sun = math.sin(math.radians(elevation))
    scale, offset = (mtl.number(group, f"{of}_{kind}_BAND_{number}") / sun for kind in ("MULT", "ADD"))
    if scale == 0:
        raise DataError(f"{mtl.path}: found {of}_MULT_BAND_{number} 0 in the group {group}; {AGAIN}")
    return scale, offset
