"""Which images a folder or a list has, of which files each is made, and where its label is."""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from utils.errors import CONTROL, DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".jp2")


class Window(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


class Item(NamedTuple):
    """One image of a domain.

    Attributes:
        name: unique in the domain; of files in `images/` the path below it without suffix.
        files: one file with all bands, or one file a band in the order of the domain's bands.
        label: file of its label, or None.
        scene: the acquisition that it was cut from, or None where that is not known.
        window, label_window: the part of the files, and of the label, that is meant, or None for all of it.
    """

    name: str
    files: tuple[Path, ...]
    label: Path | None = None
    scene: str | None = None
    window: Window | None = None
    label_window: Window | None = None

    @property
    def image(self) -> Path:
        """The file to name when something is wrong with the image."""
        return self.files[0]


class Found(NamedTuple):
    """What a listing gave: usable items, and a sentence for everything that is not."""

    items: list[Item]
    faults: list[str]


def from_list(root: Path, rows: Path, labels: bool, partial: bool) -> Found:
    """The images of a list file.

    A row is `image` or `image label`, relative to and below `root`, separated by a tab or by white space; a row whose
    names hold spaces is understood where exactly those files exist. Byte order marks, CRLF and blank lines are fine.
    `rows` is looked up below `root` first; DataError is raised if it cannot be read. Without `labels` they are not even
    looked for; with `labels` and `partial` an image may lack its label.
    """
    path, lines = _read_lines(rows, root)
    read = [(n, _row(line, root, labels, partial)) for n, line in enumerate(lines, start=1) if line.strip()]
    faults = [f"{path}, line {number}: {found}" for number, found in read if isinstance(found, str)]
    return Found([found for _, found in read if isinstance(found, Item)], faults)


def _row(line: str, root: Path, labels: bool, partial: bool) -> Item | str:
    """The image of a row, or what is wrong with it."""
    columns = _columns(line, root, labels)
    if len(columns) > 2:
        expected = "'image' or 'image label'; separate names that hold spaces by a tab"
        return f"found {len(columns)} columns, expected {expected}"
    # A name that leads out of root would lead out of the run as well, where masks are written by name.
    if outside := [c for c in columns if Path(c).is_absolute() or ".." in Path(c).parts]:
        return f"found {outside[0]}, expected a path below and relative to {root}"
    image = root / columns[0]
    if not os.path.isfile(image):
        return f"the image {image} does not exist"
    label = root / columns[1] if labels and len(columns) == 2 else None
    there = label is not None and os.path.isfile(label)
    if labels and not there and not partial:
        return f"the label {label} does not exist" if label else "has no label column, expected 'image label'"
    name = Path(columns[0]).with_suffix("").as_posix().removeprefix("./").removeprefix("images/")
    return Item(name, (image,), label if there else None)


def from_folders(root: Path, labels: bool, partial: bool) -> Found:
    """The images in `images/` and its sub-folders, each with the label of the same path and stem in `labels/`.

    The arguments are those of `from_list`; with `partial` the folder of labels may be missing. Raises DataError if a
    folder is missing.
    """
    image_folder, label_folder = root / "images", root / "labels"
    faults: list[str] = []
    images = by_name(image_folder, root, faults)
    masks = by_name(label_folder, root, faults) if labels and (label_folder.is_dir() or not partial) else {}
    missing = images.keys() - masks.keys() if labels and not partial else set()
    faults += duplicates(images) + duplicates(masks)
    faults += [f"{images[name][0]}: has no label in {label_folder}" for name in sorted(missing)]
    extra = sorted(masks.keys() - images.keys())
    faults += [f"{masks[name][0]}: is a label without its image in {image_folder}" for name in extra]
    paired = ((name, paths[0], masks.get(name, [None])[0]) for name, paths in images.items() if name not in missing)
    return Found([Item(name, (image,), mask) for name, image, mask in paired], faults)


def by_name(folder: Path, root: Path, faults: list[str] | None = None) -> dict[str, list[Path]]:
    """The image files below a folder by their path in it without suffix; raises DataError if there is no folder, and as
    `below`, whose `faults` are these."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected the files of the domain, or give a list file")
    found: dict[str, list[Path]] = {}
    for path in below(folder, root, faults):
        if path.suffix.lower() in SUFFIXES:
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return found


def below(folder: Path, root: Path, faults: list[str] | None = None) -> list[Path]:
    """All files and folders below a folder, sorted, but for hidden ones, such as ._a.tif of macOS.

    A link to a folder is followed to wherever that lies below `root`. One that leads out of it, to a folder that holds
    the link, or to nothing is left out, with a sentence in `faults`; without such a list it raises DataError.
    """
    home, found = os.path.realpath(root), list[Path]()
    for place, folders, files in os.walk(folder, followlinks=True):
        paths = [Path(place, name) for name in [*folders, *files] if not name.startswith(".")]
        bad = {path: fault for path in paths if (fault := _astray(path, root, home))}
        if faults is not None:
            faults += bad.values()
        elif bad:
            raise DataError(next(iter(bad.values())))
        found += [path for path in paths if path not in bad]
        folders[:] = [name for name in folders if not name.startswith(".") and Path(place, name) not in bad]
    return sorted(found)


def _astray(path: Path, root: Path, home: str) -> str | None:
    """What is wrong with a link that is no link to a file."""
    if not path.is_symlink() or path.is_file():
        return None
    target = os.path.realpath(path)
    if not path.exists() and not path.suffix:  # else it is a file that will be missed
        return f"{path}: is a link to {target}, which does not exist; mend or remove it"
    if not _inside(target, home):
        fix = "copy it there, or give a root that holds what the link leads to"
        return f"{path}: leads out of {root} by a symbolic link; {fix}"
    round_in_a_circle = _inside(str(path.parent), target)
    return f"{path}: is a link to {target}, which holds the link; remove it" if round_in_a_circle else None


def unique(items: Iterable[Item]) -> Found:
    """The items in the order of their names; a second one of the same name is a fault."""
    known: dict[str, Item] = {}
    faults = []
    for item in items:
        if (first := known.setdefault(item.name, item)) is not item:
            faults.append(f"{item.image}: has the name {item.name!r} of {first.image}; names must be unique")
    return Found([known[name] for name in sorted(known)], faults)


def fenced(root: Path, items: Iterable[Item]) -> Found:
    """The items whose files truly lie below `root`, under names without control characters.

    A symbolic link may lead from anywhere below the root to anywhere below it. One that leads out is a fault, since a
    data set from elsewhere could pass off this machine's files as its images; so is a pipe or a device, for which a
    reader would wait.
    """
    home, start = os.path.realpath(root), len(str(root))
    strange = cache(lambda folder: _strange(folder, home))
    kept, faults = [], []
    for item in items:
        for path in map(str, filter(None, (*item.files, item.label))):
            folder, name = os.path.split(path)
            if CONTROL.search(path, start):
                faults.append(f"{path!r}: has a control character in its name; rename it")
                break
            bad, stem = strange(folder), os.path.splitext(name)[0]
            read_with_it = f"{name}.msk", f"{name}.MSK", f"{name}.aux.xml", f"{stem}.hdr"  # by GDAL
            if bad is None or (bad and bad & {name, *read_with_it}):
                fix = "copy it there, or give a root that holds what the link leads to"
                faults.append(f"{path}: leads out of {root} by a symbolic link, or is no file; {fix}")
                break
        else:
            kept.append(item)
    return Found(kept, faults)


def _strange(folder: str, home: str) -> set[str] | None:
    """The names in a folder that are not to be read; None for all."""
    if not _inside(folder, home):
        return None
    try:
        with os.scandir(folder) as entries:
            return {
                entry.name
                for entry in entries
                if not (_inside(entry.path, home) if entry.is_symlink() else entry.is_file() or entry.is_dir())
            }
    except OSError:  # a folder that is missing has nothing strange
        return set()


def _inside(path: str, home: str) -> bool:
    return os.path.commonpath([home, os.path.realpath(path)]) == home


def raise_all(faults: Sequence[str], what: str) -> None:
    """Raise one DataError for all faults, if there are any."""
    if faults:
        listed = "\n  ".join(sorted(faults))
        raise DataError(f"{what} has {len(faults)} fault(s); mend or remove these files:\n  {listed}")


def read_names(rows: Path, root: Path = Path()) -> list[str]:
    """The lines of a text file of names, looked up below `root` first, exactly, without blank ones."""
    return [line for line in _read_lines(rows, root)[1] if line.strip()]


def _read_lines(rows: Path, root: Path) -> tuple[Path, list[str]]:
    path = root / rows if (root / rows).is_file() else rows
    try:
        return path, path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        reason = f"cannot read the list ({error.strerror})"
        raise DataError(f"{root / rows}: {reason}; expected rows 'image [label]'") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not a text file; expected rows 'image [label]' in UTF-8") from None


def _columns(line: str, root: Path, labels: bool) -> list[str]:
    line = line.strip()
    if "\t" in line:
        return [column.strip() for column in line.split("\t") if column.strip()]
    words = line.split()
    if len(words) > 1 and os.path.isfile(root / line):
        return [line]
    if len(words) > 2:
        for space in reversed([place for place, sign in enumerate(line) if sign == " "]):
            image, label = line[:space].strip(), line[space:].strip()
            if os.path.isfile(root / image) and (not labels or os.path.isfile(root / label)):
                return [image, label]
    return words


def duplicates(files: Mapping[str, list[Path]]) -> list[str]:
    """A fault for each name that several files share."""
    twice = (", ".join(map(str, paths)) for paths in files.values() if len(paths) > 1)
    return [f"{paths}: share one name; keep one of them" for paths in twice]
