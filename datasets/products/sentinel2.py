"""Sentinel-2 L1C and L2A, a SAFE folder or a zip of it, of the layout since 2016: one tile a product."""

import re
from pathlib import PurePosixPath
from xml.etree.ElementTree import Element

from datasets.drivers import parsed_xml
from datasets.products.containers import AGAIN, Container
from datasets.products.product import BandFile, Product
from utils.errors import DataError
from utils.records import reading

METADATA = re.compile(r"(?:^|/)MTD_MSI(L1C|L2A)\.xml$")
IMAGE = re.compile(r"GRANULE/[^/]+/IMG_DATA/(?:R\d0m/)?T\w{5}_\w{15}_(B\d\d|B8A)(?:_(\d0)m)?")
# Band -> its common names, by STAC's extension eo and by this project's readers; in the order of the band ids.
NAMES = {
    "B01": ("coastal",),
    "B02": ("blue",),
    "B03": ("green",),
    "B04": ("red",),
    "B05": ("rededge071", "rededge1"),
    "B06": ("rededge075", "rededge2"),
    "B07": ("rededge078", "rededge3"),
    "B08": ("nir",),
    "B8A": ("nir08",),
    "B09": ("nir09", "water_vapour"),
    "B10": ("cirrus",),
    "B11": ("swir16", "swir1"),
    "B12": ("swir22", "swir2"),
}
# By level, the elements of the quantification value and of the offset, which is there since the baseline 04.00.
SCALING = {"L1C": ("QUANTIFICATION_VALUE", "RADIO_ADD_OFFSET"), "L2A": ("BOA_QUANTIFICATION_VALUE", "BOA_ADD_OFFSET")}
WITH_OFFSET = 4.0


def sentinel2(container: Container, name: str) -> Product:
    """The product whose metadata are the file `name`; raises DataError if they cannot be used."""
    matched = METADATA.search(name)
    assert matched is not None
    folder, path = PurePosixPath(name).parent, container.path / name
    with reading(path, f"the metadata of a Sentinel-2 {matched[1]} product", AGAIN):
        root = parsed_xml(container.read(name))
        quantification, offset = SCALING[matched[1]]
        added = {int(element.get("band_id", "")): int(float(_text(element))) for element in root.iter(offset)}
        baseline = _first(root, "PROCESSING_BASELINE")
        if float(baseline) >= WITH_OFFSET and not added:
            raise ValueError(f"baseline {baseline} and no {offset}")
        unit = 1 / float(_first(root, quantification)), 0.0
        special = zip(root.iter("SPECIAL_VALUE_TEXT"), root.iter("SPECIAL_VALUE_INDEX"), strict=True)
        nodata = {_text(text): int(_text(value)) for text, value in special}.get("NODATA", 0)
        images = [_text(element) for element in root.iter("IMAGE_FILE")]
        found = sorted(
            (int(image[2] or 0), image[1], image[0]) for image in map(IMAGE.fullmatch, images) if image is not None
        )
        granules = {image.split("/")[1] for _, _, image in found}
        if len(granules) != 1:
            raise ValueError(f"{len(granules)} granules, expected the layout since 2016, of one")
        time, satellite = _first(root, "PRODUCT_START_TIME"), _first(root, "SPACECRAFT_NAME")
    bands: dict[str, BandFile] = {}
    for _, number, image in found:  # the finest first
        file = (folder / f"{image}.jp2").as_posix()
        opened = container.prefix + file if file in container.names else None
        band_id = list(NAMES).index(number)
        if added and band_id not in added:
            raise DataError(f"{path}: has no {offset} of band_id {band_id}; {AGAIN}")
        band = BandFile(container.path / file, opened, added.get(band_id, 0), unit)
        for common in (*NAMES[number], number.lower()):
            bands.setdefault(common, band)
    return Product(container.path, bands, nodata, {"ACQUISITIONDATETIME": time, "SATELLITEID": satellite})


def _first(root: Element, tag: str) -> str:
    if (element := next(root.iter(tag), None)) is None:
        raise ValueError(f"no {tag}")
    return _text(element)


def _text(element: Element) -> str:
    return (element.text or "").strip()
