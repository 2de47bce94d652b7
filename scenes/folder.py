"""A folder of masks: the scenes that go in, the settings it was begun with, and the summary of what is finished."""

import csv
import glob
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from datasets.decode import picture_kind
from datasets.files import SUFFIXES, by_name
from engine import processes
from scenes.predict import Options, Summary
from utils.errors import CONTROL, ConfigError, DataError
from utils.files import write_text
from utils.records import read_json, reading, write_json

SETTINGS, SUMMARY = "predict.json", "summary.csv"


def find_scenes(inputs: Sequence[str], out: Path) -> tuple[dict[str, Path], list[str]]:
    """The files to predict, by name: the path below the folder that was given, or the file's own, without suffix; and a
    sentence for each name that several files have, of which none is predicted.

    An input that is not there raises DataError; masks among the scenes raise ConfigError.
    """
    found: dict[str, set[Path]] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            if out.resolve().is_relative_to(path.resolve()):
                raise ConfigError(f"--out {out} lies in {path}, its masks would be taken for scenes; give another")
            named = [(name, file) for name, files in by_name(path).items() for file in files]
            if not named:
                raise DataError(f"{path}: holds no {', '.join(SUFFIXES)} file; name files of other kinds one by one")
        else:
            files = [path] if path.is_file() else map(Path, glob.glob(text, recursive=True))
            named = [(file.stem, file) for file in files]
            if not named:
                raise DataError(f"{text}: no such file, folder or glob")
        for name, file in named:
            found.setdefault(name, set()).add(file)
    scenes = {name: sorted(paths) for name, paths in sorted(found.items())}
    if strange := [str(paths[0]) for name, paths in scenes.items() if CONTROL.search(name)]:
        raise ConfigError(f"{strange[0]!r}: has a control character in its name; rename it")
    shared = [", ".join(map(str, paths)) for paths in scenes.values() if len(paths) > 1]
    fix = "would have one mask file; rename them, or give another --out for each"
    return {name: paths[0] for name, paths in scenes.items() if len(paths) == 1}, [f"{of}: {fix}" for of in shared]


def open_folder(out: Path, weights: Path, options: Options) -> None:
    """Make the folder of the masks, or go on with it; raises ConfigError if it was begun with other settings, or cannot
    be made."""
    record = out / SETTINGS
    digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None
    settings = {"weights": digest, **asdict(options)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not record.exists():
            write_json(record, settings)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be used as --out ({error}); give another folder") from None
    with reading(record, "the settings of predict.py", "give another --out", ConfigError):
        before = read_json(record)
        changed = [f"{key} was {before.get(key)}, is {now}" for key, now in settings.items() if before.get(key) != now]
    if changed:
        raise ConfigError(f"{out}: begun with other settings: {'; '.join(changed)}. Give the same, or another --out")


def outputs_of(out: Path, layers: Sequence[str], name: str, scene: Path) -> dict[str, Path]:
    """The files of a scene, by layer."""
    suffix = ".png" if picture_kind(scene) else ".tif"
    return {layer: out / f"{name}_{layer}{'.png' if layer == 'quicklook' else suffix}" for layer in layers}


class SummaryFile:
    """OUT/summary.csv, a row for each finished scene. Each of several processes has a part of its own until all end.
    Every method raises DataError if it cannot be read or written."""

    def __init__(self, out: Path) -> None:
        self.path = out / SUMMARY
        self.stopped = self._parts()  # of processes that did not end
        self.rows = {name: row for part in [*self.stopped, self.path] for name, row in read_summary(part).items()}

    def add(self, name: str, row: Summary) -> None:
        """Add the row of a scene, and write this process's file."""
        self.rows[name] = row
        mine = self.path if processes.is_first() else self.path.with_suffix(f".{processes.rank()}{self.path.suffix}")
        write_summary(mine, self.rows)

    def join(self) -> None:
        """Make one file of those of all processes."""
        everyone = processes.gathered_objects(self.rows)
        if processes.is_first() and (self.stopped or processes.size() > 1):
            write_summary(self.path, {name: row for rows in everyone for name, row in rows.items()})
            for part in self._parts():
                part.unlink()

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}.*{self.path.suffix}"))


def read_summary(path: Path) -> dict[str, Summary]:
    """The row of each scene; a damaged file raises `DataError`."""
    if not path.exists():
        return {}
    with reading(path, "a summary of predict.py", "remove it to predict all scenes anew"):
        rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8"))))
        return {row["scene"]: Summary(*(float(row[field]) for field in Summary._fields)) for row in rows}


def write_summary(path: Path, rows: Mapping[str, Summary]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["scene", *Summary._fields])
    table.writerows([name, *(f"{value:.6g}" for value in row)] for name, row in sorted(rows.items()))
    write_text(path, text.getvalue())
