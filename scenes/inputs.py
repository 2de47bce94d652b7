"""Which scenes the words of a command line name: files, products, folders of both, globs, and patterns."""

import glob
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from datasets.files import SUFFIXES, below
from datasets.products import (
    ARCHIVE,
    SAFE,
    Product,
    is_product,
    is_remote,
    product_folders,
    product_of_files,
    product_of_url,
)
from utils.errors import CONTROL, ConfigError, DataError

FIELD = re.compile(r"{scene}|{band}")  # of a pattern


def labels_of(bands: Sequence[str]) -> dict[str, str]:
    """Of bands given as red=04 what stands for each in a pattern, by name; none of bands given by name alone. Raises
    ConfigError for a mixture, and for a band or a label that comes twice."""
    pairs = [(name.strip().lower(), label) for name, sign, label in (band.partition("=") for band in bands) if sign]
    labels = dict(pairs)
    if pairs and not len(bands) == len(labels) == len({*labels.values()}):
        expected = "red,green,blue, or red=04,green=03,blue=02, each once"
        raise ConfigError(f"--bands: found {','.join(bands)}, expected such as {expected}")
    return labels


def nodata_rule(text: str) -> str | float:
    """A rule of pixels without data, as `--nodata` has it: a number, or a name."""
    try:
        return float(text)
    except ValueError:
        return text


def find_scenes(
    inputs: Sequence[str],
    out: Path,
    bands: Sequence[str] = (),
    labels: Mapping[str, str] = MappingProxyType({}),
    *,
    remote: bool = False,
) -> tuple[dict[str, Path | Product], list[str]]:
    """The scenes to predict, by name: the path below the folder that was given, or the file's own, without suffix; and
    a sentence for each name that several have, each link that is not followed, and each of a pattern that lacks a band:
    those are not predicted.

    A scene is a file, the folder or archive of a product, or what a pattern with {band} finds, whose names of bands are
    those that `labels` gives to what stands in its place, else that itself. With `remote` it may be a URL, of a file of
    `bands` or with {band}. An input that is not there raises DataError; masks among the scenes, or a URL without
    `remote` or names of bands, raise ConfigError.
    """
    found: dict[str, set[Path]] = {}
    by_pattern: dict[str, list[Product]] = {}
    astray: list[str] = []
    for text in inputs:
        path = Path(text)
        if is_remote(text):
            name, product = _remote(text, bands, labels, remote)
            by_pattern.setdefault(name, []).append(product)
            continue
        if "{band}" in text:
            for name, product in _by_pattern(text, labels).items():
                by_pattern.setdefault(name, []).append(product)
            continue
        if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
            raise ConfigError(f"--out {out} lies in {path}, its masks would be taken for scenes; give another")
        if path.is_dir() and not is_product(path):
            named = _in_folder(path, astray)
            if not named and not astray:
                raise DataError(f"{path}: holds no {', '.join(SUFFIXES)} file; name files of other kinds one by one")
        else:
            files = [path] if path.exists() else map(Path, glob.glob(text, recursive=True))
            named = [(_stem(file), file) for file in files if file.is_file() or is_product(file)]
            if not named:
                raise DataError(f"{text}: no such file, folder or glob")
        for name, file in named:
            found.setdefault(name, set()).add(file)
    scenes: dict[str, list[Path | Product]] = {name: [*sorted(paths)] for name, paths in found.items()}
    for name, products in by_pattern.items():
        scenes.setdefault(name, []).extend(products)
    if strange := [str(paths[0]) for name, paths in scenes.items() if CONTROL.search(name)]:
        raise ConfigError(f"{strange[0]!r}: has a control character in its name; rename it")
    shared = [", ".join(map(str, paths)) for _, paths in sorted(scenes.items()) if len(paths) > 1]
    fix = "would have one mask file; rename them, or give another --out for each"
    single = {name: paths[0] for name, paths in sorted(scenes.items()) if len(paths) == 1}
    return single, [*astray, *(f"{of}: {fix}" for of in shared)]


def _stem(path: Path) -> str:
    """A scene's name; SAFE is no suffix of it, whether of a folder or within that of an archive."""
    stem = path.name if path.is_dir() else path.stem
    return stem.removesuffix(SAFE) or stem


def _in_folder(folder: Path, astray: list[str]) -> list[tuple[str, Path]]:
    """The scenes below a folder: products, and files that are no part of one; what is wrong with a link goes to
    `astray`."""
    paths = below(folder, folder, astray)
    products = product_folders(paths)
    whole = [path for path in paths if path in products or ARCHIVE.fullmatch(path.name)]
    parts = {path for path in paths if not products.isdisjoint(path.parents)}
    files = [path for path in paths if path.suffix.lower() in SUFFIXES and path not in parts]
    named = [(path.relative_to(folder).parent / _stem(path), path) for path in [*whole, *files] if path not in parts]
    return [(name.as_posix(), path) for name, path in named]


def _remote(url: str, bands: Sequence[str], labels: Mapping[str, str], allowed: bool) -> tuple[str, Product]:
    """The name and the scene of a URL."""
    if not allowed:
        raise ConfigError(f"{url}: is on the network, where nothing is read without --remote; give that, or a copy")
    if "{scene}" in url or not bands or ("{band}" in url and not labels):
        expected = (
            "--bands red,green,blue in the file's order, or with {band} in the URL --bands red=04,green=03,blue=02"
        )
        raise ConfigError(f"{url}: does not say which bands it has, expected {expected}; a URL takes no {{scene}}")
    name = PurePosixPath(url.partition("?")[0].replace("{band}", "")).stem.strip("_.- ")
    return name, product_of_url(url, bands, labels)


def _by_pattern(text: str, labels: Mapping[str, str]) -> dict[str, Product]:
    """The scenes that a pattern finds, by name: what stands for {scene}, else the files' name without their band."""
    pattern, names = re.compile(_expression(text)), {label: band for band, label in labels.items()}
    found: dict[str, dict[str, Path]] = {}
    for file in sorted(glob.glob(FIELD.sub("*", text))):
        if matched := pattern.fullmatch(file):
            words, (begin, end) = matched.groupdict(), matched.span("band")
            scene = words.get("scene") or Path(file[:begin] + file[end:]).stem.strip("_.- ")
            files, band = found.setdefault(scene, {}), names.get(words["band"], words["band"].lower())
            if band in files:
                raise DataError(f"{file}: is the band {band} of {scene}, as is {files[band]}; give a narrower pattern")
            files[band] = Path(file)
    if not found:
        raise DataError(f"{text}: finds no file; expected a pattern such as {{scene}}/*_B{{band}}.tif")
    return {scene: product_of_files(next(iter(files.values())).parent, files) for scene, files in found.items()}


def _expression(text: str) -> str:
    """A pattern as a regular expression, in which a field that comes again stands for the same."""
    seen = set[str]()

    def part(found: re.Match[str]) -> str:
        field = found[0].strip("{}")
        if field in seen:
            return f"(?P={field})"
        if FIELD.fullmatch(found[0]):
            seen.add(field)
            return f"(?P<{field}>[^/]+)"
        return {"*": "[^/]*", "?": "[^/]"}.get(found[0], re.escape(found[0]))

    return re.sub(f"{FIELD.pattern}|.", part, text)
