"""Products in the layouts that ESA and the USGS publish, small: names, metadata files, pixel sizes, offsets."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

CORNER = (499_980, 5_300_040)
S2_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
S2_METRES = dict(zip(S2_BANDS, (60, 10, 10, 10, 20, 20, 20, 10, 20, 60, 60, 20, 20), strict=True))
LANDSAT_BANDS = tuple(map(str, range(1, 12)))
MULT, ADD, SUN = 2e-5, -0.1, 35.0  # of Level 1
OFFSET = -1000  # of Sentinel-2 since the baseline 04.00


def write_band(path: Path, pixels: np.ndarray, metres: float, corner: tuple[float, float] = CORNER) -> None:
    """A band (H, W), lossless, with its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lossless = {"driver": "JP2OpenJPEG", "quality": 100, "reversible": "yes", "blockxsize": 64, "blockysize": 64}
    tiled = {"driver": "GTiff", "tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    shape = {"height": pixels.shape[0], "width": pixels.shape[1], "count": 1, "dtype": pixels.dtype}
    place = {"crs": "EPSG:32633", "transform": from_origin(*corner, metres, metres)}
    with rasterio.open(path, "w", **(lossless if path.suffix == ".jp2" else tiled), **shape, **place) as file:
        file.write(pixels, 1)


def write_safe(
    folder: Path, bands: Mapping[str, np.ndarray], level: str = "L1C", baseline: str = "02.09", tile: str = "T33UUP"
) -> Path:
    """A SAFE folder of these bands, by Sentinel-2's names; since 04.00 what is stored is 1,000 more, 0 but where there
    is no data. The metadata name all bands of the level."""
    later, short = float(baseline) >= 4, baseline.replace(".", "")
    start, name = "20220101T101329", f"N{short}_R022_{tile}_20220101T112007"
    safe = folder / f"S2A_MSI{level}_{start}_{name}.SAFE"
    granule = safe / "GRANULE" / f"{level}_{tile}_A034108_{start}"
    files = {}
    for band in S2_BANDS:
        if level == "L1C":
            files[band] = [(f"{tile}_{start}_{band}", S2_METRES[band])]
        elif band != "B10":
            metres = [size for size in (10, 20, 60) if size >= S2_METRES[band]]
            files[band] = [(f"R{size}m/{tile}_{start}_{band}_{size}m", size) for size in metres]
    for band, pixels in bands.items():
        for image, metres in files[band]:
            step = metres // S2_METRES[band]
            stored = np.where(pixels > 0, pixels.astype(int) - OFFSET * later, 0).astype(np.uint16)
            write_band(granule / "IMG_DATA" / f"{image}.jp2", stored[::step, ::step], metres)
    images = "".join(
        f"<IMAGE_FILE>GRANULE/{granule.name}/IMG_DATA/{image}</IMAGE_FILE>"
        for of_band in files.values()
        for image, _ in of_band
    )
    ids = range(len(S2_BANDS))
    if level == "L1C":
        values = '<QUANTIFICATION_VALUE unit="none">10000</QUANTIFICATION_VALUE>'
        offsets = "".join(f'<RADIO_ADD_OFFSET band_id="{i}">{OFFSET}</RADIO_ADD_OFFSET>' for i in ids)
        offsets = f"<Radiometric_Offset_List>{offsets}</Radiometric_Offset_List>"
    else:
        values = (
            '<QUANTIFICATION_VALUES_LIST><BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE>'
            '<AOT_QUANTIFICATION_VALUE unit="none">1000.0</AOT_QUANTIFICATION_VALUE></QUANTIFICATION_VALUES_LIST>'
        )
        offsets = "".join(f'<BOA_ADD_OFFSET band_id="{i}">{OFFSET}</BOA_ADD_OFFSET>' for i in ids)
        offsets = f"<BOA_ADD_OFFSET_VALUES_LIST>{offsets}</BOA_ADD_OFFSET_VALUES_LIST>"
    special = (
        "<Special_Values><SPECIAL_VALUE_TEXT>{}</SPECIAL_VALUE_TEXT>"
        "<SPECIAL_VALUE_INDEX>{}</SPECIAL_VALUE_INDEX></Special_Values>"
    )
    (safe / f"MTD_MSI{level}.xml").write_text(f"""<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<n1:Level-{level[1:]}_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-{level[1:]}.xsd">
  <n1:General_Info>
    <Product_Info>
      <PRODUCT_START_TIME>2022-01-01T10:13:29.024Z</PRODUCT_START_TIME>
      <PRODUCT_URI>{safe.name}</PRODUCT_URI>
      <PROCESSING_LEVEL>Level-{level[1:]}</PROCESSING_LEVEL>
      <PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>
      <Datatake datatakeIdentifier="GS2A_{start}_034108_N{baseline}">
        <SPACECRAFT_NAME>Sentinel-2A</SPACECRAFT_NAME>
      </Datatake>
      <Product_Organisation><Granule_List>
        <Granule granuleIdentifier="S2A_OPER_MSI_{level}_TL_VGS4_{tile}_N{baseline}" imageFormat="JPEG2000">
          {images}
        </Granule>
      </Granule_List></Product_Organisation>
    </Product_Info>
    <Product_Image_Characteristics>
      {special.format("NODATA", 0)}{special.format("SATURATED", 65535)}
      {values}{offsets if later else ""}
    </Product_Image_Characteristics>
  </n1:General_Info>
</n1:Level-{level[1:]}_User_Product>
""")
    (granule / "MTD_TL.xml").write_text("<n1:Level-1C_Tile_ID/>")
    for other in ("manifest.safe", "INSPIRE.xml", "DATASTRIP/DS_VGS4/MTD_DS.xml"):
        (safe / other).parent.mkdir(parents=True, exist_ok=True)
        (safe / other).write_text("<xml/>")
    return safe


def zipped(safe: Path) -> Path:
    """The zip of a SAFE folder, beside it, as it is downloaded."""
    archive = safe.with_name(f"{safe.name.removesuffix('.SAFE')}.zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(safe.rglob("*")):
            file.write(path, path.relative_to(safe.parent).as_posix())
    return archive


def write_landsat(folder: Path, bands: Mapping[str, np.ndarray], level: str = "L1TP", mission: int = 8) -> Path:
    """A folder of Collection 2 with these bands, 30 m and 15 m (8), by Landsat's numbers; the MTL file names all."""
    name = f"LC0{mission}_{level}_192026_20220101_20220106_02_T1"
    product = folder / name
    second = level.startswith("L2")
    numbers = [number for number in LANDSAT_BANDS if not second or int(number) <= 7]
    files = {number: f"{name}_{'SR_' * second}B{number}.TIF" for number in numbers}
    product.mkdir(parents=True)
    for number, pixels in bands.items():
        pan = number == "8"  # whose pixels have their centres on the corners and centres of the others'
        corner = (CORNER[0] - 7.5, CORNER[1] + 7.5) if pan else CORNER
        write_band(product / files[number], pixels, 15 if pan else 30, corner)
    contents = [f'FILE_NAME_BAND_{number} = "{file}"' for number, file in files.items()]
    reflective = [number for number in numbers if int(number) <= 9]
    first = [f"REFLECTANCE_MULT_BAND_{number} = 2.0000E-05" for number in LANDSAT_BANDS[:9]]
    first += [f"REFLECTANCE_ADD_BAND_{number} = -0.100000" for number in LANDSAT_BANDS[:9]]
    groups = {
        "PRODUCT_CONTENTS": [
            'ORIGIN = "Image courtesy of the U.S. Geological Survey"',
            f'LANDSAT_PRODUCT_ID = "{name}"',
            f'PROCESSING_LEVEL = "{level}"',
            "COLLECTION_NUMBER = 02",
            *contents,
            f'FILE_NAME_QUALITY_L1_PIXEL = "{name}_QA_PIXEL.TIF"',
        ],
        "IMAGE_ATTRIBUTES": [
            f'SPACECRAFT_ID = "LANDSAT_{mission}"',
            "DATE_ACQUIRED = 2022-01-01",
            'SCENE_CENTER_TIME = "09:57:42.1234560Z"',
            f"SUN_ELEVATION = {SUN:.8f}",
        ],
    }
    if second:
        groups["LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"] = [
            *(f"REFLECTANCE_MULT_BAND_{number} = 2.75e-05" for number in reflective),
            *(f"REFLECTANCE_ADD_BAND_{number} = -0.2" for number in reflective),
        ]
        groups["LEVEL1_PROCESSING_RECORD"] = [f'FILE_NAME_BAND_{n} = "of_level_1_B{n}.TIF"' for n in LANDSAT_BANDS]
    groups["LEVEL1_RADIOMETRIC_RESCALING"] = first
    text = "".join(
        f"  GROUP = {group}\n" + "".join(f"    {line}\n" for line in lines) + f"  END_GROUP = {group}\n"
        for group, lines in groups.items()
    )
    text = f"GROUP = LANDSAT_METADATA_FILE\n{text}END_GROUP = LANDSAT_METADATA_FILE\nEND\n"
    (product / f"{name}_MTL.txt").write_text(text)
    return product
