"""A folder of masks: the settings it was begun with, and the summary of what is finished."""

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from datasets.decode import picture_kind
from datasets.files import below
from datasets.products import Product, is_product
from engine import processes
from scenes.predict import Options, Summary
from utils.errors import ConfigError, DataError, unwritable
from utils.files import write_text
from utils.records import read_json, reading, write_json

SETTINGS, SUMMARY = "predict.json", "summary.csv"


def open_folder(out: Path, weights: Path, options: Options, reading_rules: Mapping[str, object] | None = None) -> None:
    """Make the folder of the masks, or go on with it; raises ConfigError if scenes were finished there with other
    settings, those of how scenes are read among them (`reading_rules`), or it cannot be made."""
    record = out / SETTINGS
    digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None
    settings = {"weights": digest, **asdict(options), **(reading_rules or {})}
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not record.exists():
            write_json(record, settings)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be used as --out ({error}); give another folder") from None
    with reading(record, "the settings of predict.py", "give another --out", ConfigError):
        before = read_json(record)
        changed = [f"{key} was {before.get(key)}, is {now}" for key, now in settings.items() if before.get(key) != now]
    if changed and not any(out.glob(f"{Path(SUMMARY).stem}*")):
        write_json(record, settings)
    elif changed:
        raise ConfigError(f"{out}: begun with other settings: {'; '.join(changed)}. Give the same, or another --out")


def outputs_of(out: Path, layers: Sequence[str], name: str, scene: Path | Product) -> dict[str, Path]:
    """The files of a scene, by layer."""
    whole = isinstance(scene, Product) or is_product(scene)
    suffix = ".tif" if whole or not picture_kind(Path(str(scene))) else ".png"
    return {layer: out / f"{name}_{layer}{'.png' if layer == 'quicklook' else suffix}" for layer in layers}


class Row(NamedTuple):
    """What is known of a finished scene: its summary, and size in bytes and time of change (ns) of its file then."""

    summary: Summary
    bytes: int
    modified: int


STAMP = Row._fields[1:]


class SummaryFile:
    """OUT/summary.csv, a row for each finished scene. Each of several processes has a part of its own until all end.
    Every method raises DataError if it cannot be read or written."""

    def __init__(self, out: Path) -> None:
        self.path = out / SUMMARY
        first, whose = processes.is_first(), f".{processes.rank()}{self.path.suffix}"
        self.mine = self.path if first else self.path.with_suffix(whose)
        before = [*self._parts(), self.path]  # the parts are of processes that did not end
        self.rows = {name: row for part in before for name, row in read_summary(part).items()}
        self.appending = False  # the first row of this process makes its file anew: the last one there may be cut off

    def finished(self, name: str, stamp: tuple[int, int], outputs: Iterable[Path]) -> bool:
        """Whether a scene has its row and its outputs, and they are of this very file."""
        return name in self.rows and self.rows[name][1:] == stamp and all(output.is_file() for output in outputs)

    def add(self, name: str, row: Row) -> None:
        """Add the row of a scene to this process's file."""
        self.rows[name] = row
        appending, self.appending = self.appending, False
        if appending:
            try:
                with open(self.mine, "a", encoding="utf-8") as file:
                    file.write(_table({name: row}))
            except OSError as error:
                raise unwritable(self.mine, error) from error
        else:
            write_summary(self.mine, self.rows)
        self.appending = True

    def join(self) -> dict[str, Row]:
        """Make one file of those of all processes, in the order of the names, and return its rows."""
        everyone = processes.gathered_objects(self.rows)
        together = {name: row for rows in everyone for name, row in rows.items()}
        if processes.is_first():
            write_summary(self.path, together)
            for part in self._parts():
                part.unlink()
        return together

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}.*{self.path.suffix}"))


def stamp_of(scene: Path | Product) -> tuple[int, int]:
    """Size in bytes and time of change (ns) of a scene's file, or the sum and the last of those of its files, 0 where
    they are on the network; raises DataError if it is not there."""
    try:
        if isinstance(scene, Product):
            files = [file.path for file in {*scene.bands.values()} if isinstance(file.path, Path)]
        else:
            files = [file for file in below(scene, scene) if file.is_file()] if scene.is_dir() else [scene]
        found = [file.stat() for file in files]
    except OSError as error:
        raise DataError(f"{scene}: cannot be read ({error.strerror})") from None
    return sum(file.st_size for file in found), max((file.st_mtime_ns for file in found), default=0)


def read_summary(path: Path) -> dict[str, Row]:
    """The row of each scene, but for one that was being written; a damaged file raises `DataError`."""
    if not path.exists():
        return {}
    with reading(path, "a summary of predict.py", "remove it to predict all scenes anew"):
        whole, end, _ = path.read_text("utf-8").rpartition("\n")
        rows = {row["scene"]: Summary._field_defaults | row for row in csv.DictReader(io.StringIO(whole + end))}
        kinds = [(name, str if name == "notes" else float) for name in Summary._fields]
        summaries = {name: Summary._make(kind(row[field]) for field, kind in kinds) for name, row in rows.items()}
        # A summary from before the stamps were written has none, so that its scenes are predicted anew.
        return {
            name: Row(summaries[name], *(int(row.get(field) or 0) for field in STAMP)) for name, row in rows.items()
        }


def write_summary(path: Path, rows: Mapping[str, Row]) -> None:
    """Write the rows in the order of the names, unless they are there; none makes no file."""
    text = ",".join(["scene", *Summary._fields, *STAMP]) + "\n" + _table(rows)
    before = path.read_text("utf-8") if path.exists() else None
    if text != before and (rows or before):
        write_text(path, text)


def _table(rows: Mapping[str, Row]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    for name, row in sorted(rows.items()):
        table.writerow([name, *(f"{value:.6g}" for value in row.summary[:-1]), row.summary.notes, *row[1:]])
    return text.getvalue()
