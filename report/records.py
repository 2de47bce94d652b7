"""What the parts of an evaluation leave in OUT/eval for the report and the summary, read so that damage is named."""

import json
import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from engine.run import command_line
from report.metrics import score_at
from report.scene_scores import scene_table
from report.tables import MEASURES
from utils.records import read_json, reading, write_json

AGAIN = "remove it, and run eval.py again"


class Picture(NamedTuple):
    """A picture of the report: file below the evaluation's folder, heading, how to read it."""

    file: str
    title: str
    caption: str


def remember_pictures(folder: Path, part: str, pictures: Sequence[Picture]) -> None:
    """Note a part's pictures in `folder`/pictures.json, in place of those it made before, and its command."""
    known = read_pictures(folder) | {part: [*pictures]}
    write_json(folder / "pictures.json", {name: [one._asdict() for one in made] for name, made in known.items()})
    write_json(folder / "commands.json", read_commands(folder) | {part: command_line()})


def read_pictures(folder: Path) -> dict[str, list[Picture]]:
    """The pictures of each part that was made."""
    path = folder / "pictures.json"
    with reading(path, "the pictures of an evaluation", AGAIN):
        found = read_json(path) if path.exists() else {}
        made = {part: [Picture(**picture) for picture in pictures] for part, pictures in found.items()}
        for picture in chain.from_iterable(made.values()):
            if not all(isinstance(text, str) for text in picture):
                raise ValueError(f"found {picture}, expected texts")
            if Path(picture.file).is_absolute() or ".." in Path(picture.file).parts:
                raise ValueError(f"found {picture.file!r}, expected a file below {folder}")
        return made


def read_commands(folder: Path) -> dict[str, str]:
    """The command that made each part."""
    path = folder / "commands.json"
    with reading(path, "the commands of an evaluation", AGAIN):
        found = read_json(path) if path.exists() else {}
        return {str(part): str(command) for part, command in found.items()}


def read_metrics(folder: Path) -> dict[str, dict[str, Any]]:
    """The entry of each domain in metrics.json, see `tables.report_of`."""
    path = folder / "metrics.json"
    with reading(path, "the scores of an evaluation", AGAIN):
        found = read_json(path)["domains"] if path.exists() else {}
        return {role: _domain(entry) for role, entry in found.items()}


def read_scenes(folder: Path) -> list[list[str]]:
    """The table of the official score by scenes."""
    path = folder / "scenes.json"
    with reading(path, "the scores of whole scenes", AGAIN):
        return scene_table(read_json(path)) if path.exists() else []


def read_log(stage: Path) -> list[dict[str, float]]:
    """The rows of a stage's metrics.jsonl; none where it is not there."""
    path = stage / "metrics.jsonl"
    with reading(path, "the log of a stage", "finish the stage with the command that began it, or train again"):
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
        return [{key: float(row[key]) for key in ("step", *rows[0])} for row in rows]


def _domain(entry: dict[str, Any]) -> dict[str, Any]:
    facts = {"root": str, "protocol": str, "images": int, "labelled": int}
    found = {
        **{key: kind(entry[key]) for key, kind in facts.items()},
        "models": {name: _model(values) for name, values in entry["models"].items()},
        "signs": {name: {sign: _number(share) for sign, share in of.items()} for name, of in entry["signs"].items()},
        "agreement": {names: float(share) for names, share in entry["agreement"].items()},
        "warnings": [str(warning) for warning in entry.get("warnings", [])],
    }
    if found["models"]:
        found["cloud_share"] = float(entry["cloud_share"])
        found["interval"] = {"groups": int(entry["interval"]["groups"]), "over": str(entry["interval"]["over"])}
    return found


def _model(values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"ece": None, "miou_interval": None, **values}
    for title, path in MEASURES.items():
        if (share := score_at(found, path)) is not None and not 0 <= share <= 1:
            raise ValueError(f"found {share} as {title}, expected a share")
    if "gain" in found:
        found["gain"] = _number(found["gain"])
    for key in ("miou_interval", "gain_interval") if "gain" in found else ("miou_interval",):
        if found[key] is not None:
            low, high = found[key]
            found[key] = [float(low), float(high)]
    return found


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
