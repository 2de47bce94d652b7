"""A domain on disk: which images it has, where their labels are, and whether they can be used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from datasets.geometry import IGNORE
from utils.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


class Item(NamedTuple):
    """One image of a domain; `name` is its path below `images/` without suffix and is unique in the domain."""

    name: str
    image: Path
    label: Path | None


def list_domain(root: str | Path, rows: str | Path | None = None, *, labels: bool, partial: bool = False) -> list[Item]:
    """List the images of a domain, sorted by name.

    Args:
        root: folder with `images/` and, if wanted, `labels/`.
        rows: text list, relative to `root` (or an absolute path or one relative to the working directory), of one
            column (image) or two (image label), whose entries are relative to `root`. None: every image of `images/`.
        labels: whether labels are wanted. With False they are not even looked for: training without target labels
            is the same whether they exist or not.
        partial: with `labels`, an image may lack its label; `Item.label` is None then.

    Raises:
        DataError: a missing folder or list, an empty domain, a row of more columns, two images of one name, a label
            without its image or, where labels are wanted, an image without its label. All faults in one message.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; set the domain's root to the folder that holds images/")
    items, faults = (
        _from_folder(root, labels, partial) if rows is None else _from_list(root, Path(rows), labels, partial)
    )
    names: dict[str, Path] = {}
    for item in items:
        if item.name in names:
            faults.append(f"{item.image}: has the name {item.name!r} of {names[item.name]}; names must be unique")
        names[item.name] = item.image
    _raise_all(faults, f"the domain {root}")
    if not items:
        raise DataError(f"{rows or root / 'images'}: lists no image; expected {', '.join(SUFFIXES)} files")
    return sorted(items)


def _read_list(root: Path, rows: Path) -> tuple[Path, list[str]]:
    path = root / rows if (root / rows).is_file() else rows
    try:
        return path, path.read_text("utf-8").splitlines()
    except OSError as error:
        raise DataError(
            f"{root / rows}: cannot read the list ({error.strerror}); expected rows 'image [label]'"
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not a text file; expected rows 'image [label]' in UTF-8") from None


def _from_list(root: Path, rows: Path, labels: bool, partial: bool) -> tuple[list[Item], list[str]]:
    path, lines = _read_list(root, rows)
    items, faults = [], []
    for number, line in enumerate(lines, start=1):
        columns = line.split()
        if not columns:
            continue
        place = f"{path}, line {number}"
        if len(columns) > 2:
            faults.append(
                f"{place}: found {len(columns)} columns, expected 'image' or 'image label' without spaces in names"
            )
            continue
        if Path(columns[0]).is_absolute() or ".." in Path(columns[0]).parts:  # the name would lead out of the run
            faults.append(f"{place}: found the image {columns[0]}, expected a path below and relative to {root}")
            continue
        image = root / columns[0]
        label = root / columns[1] if labels and len(columns) == 2 else None
        if not image.is_file():
            faults.append(f"{place}: the image {image} does not exist")
        if label is not None and not label.is_file():
            if not partial:
                faults.append(f"{place}: the label {label} does not exist")
            label = None
        elif labels and label is None and not partial:
            faults.append(f"{place}: has no label column, expected 'image label'")
        name = Path(columns[0]).with_suffix("").as_posix().removeprefix("./").removeprefix("images/")
        items.append(Item(name, image, label))
    return items, faults


def _from_folder(root: Path, labels: bool, partial: bool) -> tuple[list[Item], list[str]]:
    images = _by_name(root / "images")
    spaced = [paths[0] for name, paths in images.items() if name.split() != [name]]
    faults = [f"{path}: has white space in its name, which list files cannot hold; rename it" for path in spaced]
    faults += _duplicates(images)
    masks: dict[str, list[Path]] = {}
    if labels and not (partial and not (root / "labels").is_dir()):
        masks = _by_name(root / "labels")
        faults += _duplicates(masks)
        missing = [] if partial else sorted(images.keys() - masks.keys())
        faults += [f"{images[name][0]}: has no label in {root / 'labels'}" for name in missing]
        extra = sorted(masks.keys() - images.keys())
        faults += [f"{masks[name][0]}: is a label without its image in {root / 'images'}" for name in extra]
    items = [Item(name, paths[0], masks[name][0] if name in masks else None) for name, paths in images.items()]
    return items, faults


def _by_name(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected the files of the domain, or give a list file")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return found


def _duplicates(files: Mapping[str, list[Path]]) -> list[str]:
    return [
        f"{', '.join(map(str, paths))}: share one name; keep one of them" for paths in files.values() if len(paths) > 1
    ]


def read_image(path: Path) -> np.ndarray:
    """Decode an 8-bit colour image into (H, W, 3) uint8 RGB.

    Raises:
        DataError: the file cannot be decoded, or has another depth or number of bands.
    """
    pixels = _decode(path)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        bands = 1 if pixels.ndim == 2 else pixels.shape[2]
        raise DataError(f"{path}: found {bands} band(s) of {pixels.dtype}, expected an 8-bit RGB image")
    return cv2.cvtColor(pixels[..., :3], cv2.COLOR_BGR2RGB)


def read_label(path: Path, label_map: Mapping[int, int]) -> np.ndarray:
    """Decode a label image into classes (H, W) uint8: 0 clear, 1 cloud, 255 ignore.

    Raises:
        DataError: the file cannot be decoded, is not of one band, or holds a value outside `label_map`.
    """
    pixels = _decode(path)
    if pixels.ndim == 3 and (pixels[..., :1] == pixels[..., :3]).all():  # grey saved as colour
        pixels = pixels[..., 0]
    if pixels.ndim != 2 or pixels.dtype != np.uint8:
        raise DataError(f"{path}: found shape {pixels.shape} of {pixels.dtype}, expected one band of 8 bits")
    present = np.flatnonzero(np.bincount(pixels.ravel(), minlength=256))
    if unknown := [int(value) for value in present if value not in label_map]:
        raise DataError(
            f"{path}: found label value(s) {', '.join(map(str, unknown[:8]))}, expected {sorted(label_map)}; "
            "set the domain's label_map"
        )
    table = np.full(256, IGNORE, np.uint8)
    table[list(label_map)] = list(label_map.values())
    return table[pixels]


def _decode(path: Path) -> np.ndarray:
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except cv2.error:
        pixels = None
    if pixels is None:
        raise DataError(f"{path}: cannot be decoded as an image ({data.size} bytes); is the file truncated?")
    return pixels


def read_item(item: Item, label_map: Mapping[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
    """Decode an image (H, W, 3) uint8 and, where it has one, its label (H, W) uint8 of the same size."""
    image = read_image(item.image)
    if item.label is None:
        return image, None
    label = read_label(item.label, label_map)
    if label.shape != image.shape[:2]:
        raise DataError(
            f"{item.label}: found {label.shape[1]}x{label.shape[0]} pixels, expected {image.shape[1]}x{image.shape[0]} "
            f"as in {item.image}"
        )
    return image, label


def check_items(items: Iterable[Item], label_map: Mapping[int, int], what: str) -> None:
    """Decode every file once and raise one `DataError` that lists all that cannot be used."""
    faults = []
    for item in tqdm(items, desc=f"checking {what}", unit="image", leave=False):
        try:
            read_item(item, label_map)
        except DataError as error:
            faults.append(str(error))
    _raise_all(faults, what)


def _raise_all(faults: Sequence[str], what: str) -> None:
    if faults:
        listed = "\n  ".join(sorted(faults))
        raise DataError(f"{what} has {len(faults)} fault(s); mend or remove these files:\n  {listed}")
