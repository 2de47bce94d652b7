"""report.html: one file that shows an evaluation and asks nothing of the network."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, select_autoescape
from PIL import Image

from config.load import to_yaml
from config.schema import PARTS, Config
from engine.layout import MODELS, read_warnings
from engine.run import COMMAND, command_line
from report.plots import training_curves
from report.scene_scores import scene_table
from report.tables import FEW, HEADER, TRIVIAL, row, sign_rows
from utils.files import write_text
from utils.records import read_json, reading

LOWER_IS_BETTER = ("ECE",)
AGAIN = "remove it, and run eval.py again"


class Picture(NamedTuple):
    """A picture of the report: file below the evaluation's folder, heading, how to read it."""

    file: str
    title: str
    caption: str


class Place(NamedTuple):
    """A target image's place in the entropy split: `split` is easy or hard, `cloud_fraction` in [0, 1]."""

    name: str
    score: float
    split: str
    cloud_fraction: float


def remember_pictures(folder: Path, part: str, figures: list[Picture]) -> None:
    """Note a part's pictures in `folder`/pictures.json, in place of those it made before.

    Raises:
        DataError: what was noted before is damaged.
    """
    known = _known_pictures(folder) | {part: figures}
    text = json.dumps({name: [figure._asdict() for figure in made] for name, made in known.items()}, indent=2)
    write_text(folder / "pictures.json", text + "\n")
    commands = _known_commands(folder) | {part: command_line()}
    write_text(folder / "commands.json", json.dumps(commands, indent=2) + "\n")


def _known_pictures(folder: Path) -> dict[str, list[Picture]]:
    path = folder / "pictures.json"
    if not path.exists():
        return {}
    with reading(path, "the pictures of an evaluation", AGAIN):
        made = {part: [Picture(**figure) for figure in figures] for part, figures in read_json(path).items()}
        for figure in (figure for figures in made.values() for figure in figures):
            if not all(isinstance(text, str) for text in figure):
                raise ValueError(f"found {figure}, expected texts")
            if Path(figure.file).is_absolute() or ".." in Path(figure.file).parts:
                raise ValueError(f"found {figure.file!r}, expected a file below {folder}")
        return made


def _known_commands(folder: Path) -> dict[str, str]:
    path = folder / "commands.json"
    if not path.exists():
        return {}
    with reading(path, "the commands of an evaluation", AGAIN):
        return {str(part): str(command) for part, command in read_json(path).items()}


def write_report(
    folder: Path, config: Config, failures: dict[str, str], missing: dict[str, str] | None = None
) -> list[Picture]:
    """Write `folder`/report.html from what this and earlier evaluations left there; returns the curves of training.

    Args:
        failures: part -> why it failed.
        missing: part -> what it would have needed.

    Raises:
        DataError: something that was left there is damaged; names it.
    """
    stale = {"scores", "predictions"} & set(failures)
    curves = _curves(folder, Path(config.out))
    known = _known_pictures(folder) | {"report": curves}
    commands = _commands(folder, Path(config.out))
    order = ("report", *(part for part in PARTS if part != "report"))
    shown = [figure for part in order for figure in known.get(part, ()) if (folder / figure.file).exists()]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=select_autoescape(default=True)
    )
    page = environment.get_template("report.html").render(
        title=Path(config.out).name,
        few=FEW,
        domains=[] if stale else _domains(folder),
        figures=[(figure, _embedded(folder / figure.file)) for figure in shown],
        scenes=[] if "scenes" in failures else _scenes(folder),
        split=_split(Path(config.out)),
        failures=failures,
        missing=missing or {},
        warnings=_warnings(Path(config.out)),
        config=to_yaml(config),
        commands=commands,
    )
    write_text(folder / "report.html", page)
    return curves


def _commands(folder: Path, out: Path) -> list[tuple[str, str]]:
    """What was made and the command that made it: the stages, then the parts of the evaluation, equal ones together."""
    found: dict[str, list[str]] = {}
    for stage in ("source_only", "teacher", "split", "intra", "oracle"):
        record = out / stage / "config.yaml"
        if record.exists():
            for line in record.read_text("utf-8", errors="replace").splitlines():
                if line.startswith(COMMAND):
                    found.setdefault(line.removeprefix(COMMAND), []).append(stage)
    for part, command in (_known_commands(folder) | {"report": command_line()}).items():
        found.setdefault(command, []).append(part)
    return [(", ".join(made), command) for command, made in found.items()]


def _warnings(out: Path) -> list[str]:
    """What the training stages warned of."""
    return [f"{model.name}: {line}" for model in MODELS.values() for line in read_warnings(out / model.stage)]


def _domains(folder: Path) -> list[dict[str, Any]]:
    """The scores of the last evaluation; empty where there are none."""
    path = folder / "metrics.json"
    if not path.exists():
        return []
    with reading(path, "the scores of an evaluation", AGAIN):
        return [_domain(role, entry) for role, entry in read_json(path)["domains"].items()]


def _domain(role: str, entry: dict[str, Any]) -> dict[str, Any]:
    """A domain's tables, cells as (text, is the column's best among the trained models)."""
    rows: list[tuple[str, list[tuple[str, bool]], bool]] = []
    models = {
        name: {key: value if key.endswith("interval") else _null_to_nan(value) for key, value in values.items()}
        for name, values in entry["models"].items()
    }
    lines = {name: row(name, values) for name, values in models.items()}
    best: dict[int, float] = {}
    for column, title in enumerate(HEADER):
        numbers = [_number(lines[name][column]) for name in lines if name not in TRIVIAL]
        known = [number for number in numbers if number is not None]
        if known and len(known) > 1:
            best[column] = min(known) if title in LOWER_IS_BETTER else max(known)
    for name, line in lines.items():
        trained = name not in TRIVIAL
        cells = [(cell, trained and c + 1 in best and _number(cell) == best[c + 1]) for c, cell in enumerate(line[1:])]
        rows.append((line[0], cells, trained))
    gains = {
        name: (100 * float(values["gain"]), _edges(values["gain_interval"]))
        for name, values in models.items()
        if "gain" in values
    }
    facts: dict[str, Any] = {"images": int(entry["images"]), "labelled": int(entry["labelled"])}
    if rows:
        facts["cloud_share"] = float(entry["cloud_share"])
        facts["interval"] = {"groups": int(entry["interval"]["groups"]), "over": entry["interval"]["over"]}
    facts["warnings"] = [str(warning) for warning in entry.get("warnings", [])]
    facts["agreement"] = {names: float(share) for names, share in entry["agreement"].items()}
    tables = {"header": HEADER, "rows": rows, "signs": sign_rows(entry), "gains": gains}
    return {"role": role, "root": entry["root"], "protocol": entry["protocol"], **facts, **tables}


def _edges(interval: list[float] | None) -> list[float]:
    if interval is None:
        return []
    low, high = interval
    return [100 * float(low), 100 * float(high)]


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _null_to_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _null_to_nan(part) for key, part in value.items()}
    return float("nan") if value is None else value


def _embedded(path: Path) -> str:
    """The picture as a data address, in WebP, which is a fifth of the PNG's size."""
    with reading(path, "a picture", AGAIN), Image.open(path) as picture, io.BytesIO() as packed:
        small = max(picture.size) <= 16383  # the limit of WebP
        picture.convert("RGB").save(packed, "webp" if small else "png", quality=88)
        return f"data:image/{'webp' if small else 'png'};base64," + base64.b64encode(packed.getvalue()).decode("ascii")


def _curves(folder: Path, out: Path) -> list[Picture]:
    logs = {model.name: _log(out / model.stage / "metrics.jsonl") for model in MODELS.values()}
    logs = {name: rows for name, rows in logs.items() if rows}
    if not logs:
        return []
    training_curves(folder / "curves.png", logs)
    caption = (
        "Left: the unweighted terms of the loss, on an axis that is linear near zero. Discriminator terms that stay "
        "at 0.69 = ln 2 mean that the discriminator cannot tell the two sides apart, or has not learnt to. Middle: "
        "mean entropies and, in stage 3, the share of accepted pseudo-labels and the cloud in them. Right: the "
        "backbone's learning rate."
    )
    return [Picture("curves.png", "Training", caption)]


def _log(path: Path) -> list[dict[str, float]]:
    """The rows of a stage's metrics.jsonl; none where it is not there."""
    if not path.exists():
        return []
    with reading(path, "the log of a stage", "finish the stage with the command that began it, or train again"):
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return [{key: float(row[key]) for key in ("step", *rows[0])} for row in rows]


def _scenes(folder: Path) -> list[list[str]]:
    """The table of the official score by scenes; empty where there is none."""
    path = folder / "scenes.json"
    if not path.exists():
        return []
    with reading(path, "the scores of whole scenes", AGAIN):
        return scene_table(read_json(path))


def read_split(folder: Path) -> list[Place]:
    """What the split's entropy.csv says, ascending by score.

    Raises:
        DataError: it is damaged.
    """
    path = folder / "entropy.csv"
    with reading(path, "the ranking of a split", "make the split again"):
        rows = csv.DictReader(io.StringIO(path.read_text("utf-8")))
        places = [Place(row["name"], float(row["score"]), row["split"], float(row["cloud_fraction"])) for row in rows]
        if {place.split for place in places} != {"easy", "hard"}:
            raise ValueError("expected easy images and hard ones")
        return places


def _split(out: Path) -> dict[str, Any] | None:
    """Counts of the entropy split, and its most and least certain images."""
    if not (out / "split" / "entropy.csv").exists():
        return None
    rows = read_split(out / "split")
    easy = sum(row.split == "easy" for row in rows)
    return {"easy": easy, "hard": len(rows) - easy, "certain": rows[:5], "uncertain": rows[:-6:-1]}
