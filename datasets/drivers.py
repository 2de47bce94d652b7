"""Which of GDAL's drivers opens a file, by its first bytes, and that it reads no file which does not belong to it."""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from utils.errors import DataError

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # and BigTIFF
JPEG_2000 = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")  # the file format and the bare codestream
VRT = (b"<VRTData", b"<?xml ve")
XML_LIMIT = 2**24  # bytes
# Of a file that is to be read alone, without those beside it. In several threads GDAL 3.10 takes the damaged tiles of a
# JPEG 2000 file for 0, and says so on stderr alone.
ALONE = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_NUM_THREADS": "1"}
# What a mosaic of plain files consists of. Everything else that GDAL knows may name further files, or run code.
MOSAIC = re.compile(
    "VRTDataset|SRS|GeoTransform|GCPList|GCP|Metadata|MDI|BlockXSize|BlockYSize|VRTRasterBand|Description|UnitType|"
    "Offset|Scale|CategoryNames|Category|ColorInterp|ColorTable|Entry|NoDataValue|HideNoDataValue|MaskBand|"
    "SimpleSource|ComplexSource|SourceFilename|SourceBand|SourceProperties|SrcRect|DstRect|NODATA|UseMaskBand|"
    "ScaleOffset|ScaleRatio"
)


def driver_of(path: Path) -> str:
    """GTiff, JP2OpenJPEG, VRT or ENVI; raises DataError for a file of another kind, and for a VRT that is no mosaic of
    TIFF and JPEG 2000 files in its own folder or below it."""
    start = first_bytes(path)
    if start.startswith(TIFF):
        return "GTiff"
    if start.startswith(JPEG_2000):
        return "JP2OpenJPEG"
    if is_vrt(path):
        for source in mosaic_files(path):
            if not first_bytes(source).startswith((*TIFF, *JPEG_2000)):
                raise DataError(f"{path}: reads {source}, expected a TIFF or JPEG 2000 file there; mend it")
        return "VRT"
    # GDAL is not left to guess: some of its formats read other files than the one that is named.
    if path.with_suffix(".hdr").is_file():
        return "ENVI"
    expected = "PNG, JPEG, BMP, TIFF, JPEG 2000, VRT by the name's end, or ENVI with its .hdr"
    raise DataError(f"{path}: cannot be decoded as an image; expected {expected}")


def is_vrt(path: Path) -> bool:
    """Whether a file is a VRT, by its name and content."""
    return path.suffix.lower() == ".vrt" and first_bytes(path).startswith(VRT)


def first_bytes(path: Path) -> bytes:
    """What tells the kind of a file; nothing of what is no file."""
    if not path.is_file():
        return b""
    with open(path, "rb") as file:
        return file.read(8)


def parsed_xml(content: bytes) -> ElementTree.Element:
    """An XML document; raises ValueError if it is none, is of more than 16 MiB, or declares entities, which multiply or
    name other files."""
    if len(content) > XML_LIMIT:
        raise ValueError(f"more than {XML_LIMIT} bytes")
    try:
        return ElementTree.fromstring(content, ElementTree.XMLParser(target=_NoEntities()))  # noqa: S314
    except ElementTree.ParseError as error:
        raise ValueError(f"no XML: {error}") from None


class _NoEntities(ElementTree.TreeBuilder):
    def doctype(self, *_: object) -> None:
        raise ValueError("a declaration of entities")


def mosaic_files(path: Path) -> Iterator[Path]:
    """The files that a VRT reads; raises DataError for one that is no mosaic, or leads out of its own folder."""
    if path.is_symlink():  # GDAL looks for the files beside what it leads to
        raise DataError(f"{path}: is a link to a VRT; give the VRT itself")
    with open(path, "rb") as file:
        content = file.read(XML_LIMIT + 1)
    try:
        elements = list(parsed_xml(content).iter())
    except ValueError as error:
        raise DataError(f"{path}: is no VRT that is read here ({error}); make it with gdalbuildvrt") from None
    home = path.parent.resolve()
    for element in elements:
        if not MOSAIC.fullmatch(element.tag) or "subClass" in element.attrib:
            found = element.get("subClass", element.tag)
            fix = "make a TIFF of it with gdal_translate where it may be trusted"
            raise DataError(f"{path}: found {found}, expected a mosaic of plain files as of gdalbuildvrt; {fix}")
        if element.tag == "SourceFilename":
            name = (element.text or "").strip()
            source = path.parent / name
            if ":" in name or not source.resolve().is_relative_to(home):
                fix = "put the VRT into the folder that holds its files, and make it there"
                raise DataError(f"{path}: leads to {name}, out of its own folder; {fix}")
            if not Path(name).is_absolute() and element.get("relativeToVRT") != "1":
                raise DataError(f"{path}: found {name} without relativeToVRT; make it with gdalbuildvrt in its folder")
            yield source
