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

from utils.config import PARTS, Config, to_yaml
from utils.files import write_text
from utils.plots import training_curves
from utils.run import COMMAND, command_line, read_warnings
from utils.scene_scores import scene_table
from utils.tables import FEW, HEADER, TRIVIAL, row, sign_rows

STAGES = (("source_only", "source_only"), ("teacher", "teacher"), ("intra", "student"), ("oracle", "oracle"))
LOWER_IS_BETTER = ("ECE",)


class Picture(NamedTuple):
    """A picture of the report: file below the evaluation's folder, heading, how to read it."""

    file: str
    title: str
    caption: str


def remember_pictures(folder: Path, part: str, figures: list[Picture]) -> None:
    """Note a part's pictures in `folder`/pictures.json, in place of those it made before."""
    known = _known_pictures(folder) | {part: figures}
    text = json.dumps({name: [figure._asdict() for figure in made] for name, made in known.items()}, indent=2)
    write_text(folder / "pictures.json", text + "\n")
    path = folder / "commands.json"
    commands = json.loads(path.read_text("utf-8")) if path.exists() else {}
    write_text(path, json.dumps(commands | {part: command_line()}, indent=2) + "\n")


def _known_pictures(folder: Path) -> dict[str, list[Picture]]:
    path = folder / "pictures.json"
    made = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return {part: [Picture(**figure) for figure in figures] for part, figures in made.items()}


def write_report(
    folder: Path, config: Config, failures: dict[str, str], missing: dict[str, str] | None = None
) -> list[Picture]:
    """Write `folder`/report.html from what this and earlier evaluations left there; returns the curves of training.

    Args:
        failures: part -> why it failed.
        missing: part -> what it would have needed.
    """
    metrics = folder / "metrics.json"
    stale = not metrics.exists() or {"scores", "predictions"} & set(failures)
    domains = {} if stale else json.loads(metrics.read_text("utf-8"))["domains"]
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
        domains=[_domain(role, entry) for role, entry in domains.items()],
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
            for line in record.read_text("utf-8").splitlines():
                if line.startswith(COMMAND):
                    found.setdefault(line.removeprefix(COMMAND), []).append(stage)
    path = folder / "commands.json"
    parts = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for part, command in (parts | {"report": command_line()}).items():
        found.setdefault(command, []).append(part)
    return [(", ".join(made), command) for command, made in found.items()]


def _warnings(out: Path) -> list[str]:
    """What the training stages warned of."""
    return [f"{name}: {line}" for stage, name in STAGES for line in read_warnings(out / stage)]


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
        name: (100 * values["gain"], [100 * edge for edge in values["gain_interval"] or ()])
        for name, values in models.items()
        if "gain" in values
    }
    return {"role": role, **entry, "header": HEADER, "rows": rows, "signs": sign_rows(entry), "gains": gains}


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
    with Image.open(path) as picture, io.BytesIO() as packed:
        small = max(picture.size) <= 16383  # the limit of WebP
        picture.convert("RGB").save(packed, "webp" if small else "png", quality=88)
        return f"data:image/{'webp' if small else 'png'};base64," + base64.b64encode(packed.getvalue()).decode("ascii")


def _curves(folder: Path, out: Path) -> list[Picture]:
    logs = {
        name: [json.loads(line) for line in (out / stage / "metrics.jsonl").read_text("utf-8").splitlines()]
        for stage, name in STAGES
        if (out / stage / "metrics.jsonl").exists()
    }
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


def _scenes(folder: Path) -> list[list[str]]:
    """The table of the official score by scenes; empty where there is none."""
    path = folder / "scenes.json"
    return scene_table(json.loads(path.read_text("utf-8"))) if path.exists() else []


def _split(out: Path) -> dict[str, Any] | None:
    """Counts of the entropy split, and its most and least certain images."""
    path = out / "split" / "entropy.csv"
    if not path.exists():
        return None
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    easy = sum(row["split"] == "easy" for row in rows)
    return {"easy": easy, "hard": len(rows) - easy, "certain": rows[:5], "uncertain": rows[:-6:-1]}
