"""report.html: one file that shows an evaluation and asks nothing of the network."""

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from config.load import to_yaml
from config.schema import PARTS, Config
from engine.layout import MODELS, RANKING, read_warnings
from engine.pseudo_labels import read_ranking
from engine.run import COMMAND, command_line
from report.metrics import score_at
from report.plots import training_curves
from report.records import AGAIN, Picture, read_commands, read_log, read_metrics, read_pictures, read_scenes
from report.tables import FEW, HEADER, MEASURES, TRIVIAL, row, sign_rows
from utils.files import write_text
from utils.records import reading


def write_report(
    folder: Path, config: Config, failures: dict[str, str], missing: dict[str, str] | None = None
) -> list[Picture]:
    """Write `folder`/report.html from what this and earlier evaluations left there; returns the curves of training.

    `failures` has why a part failed, `missing` what a part that is left out would have needed.
    """
    out, stale = Path(config.out), {"scores", "predictions"} & set(failures)
    curves = _curves(folder, out)
    known = read_pictures(folder) | {"report": curves}
    order = ("report", *(part for part in PARTS if part != "report"))
    shown = [figure for part in order for figure in known.get(part, ()) if (folder / figure.file).exists()]
    environment = Environment(loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True)
    page = environment.get_template("report.html").render(
        title=out.name,
        few=FEW,
        domains=[] if stale else [_domain(role, entry) for role, entry in read_metrics(folder).items()],
        figures=[(figure, _embedded(folder / figure.file)) for figure in shown],
        scenes=[] if "scenes" in failures else read_scenes(folder),
        split=read_ranking(out / "split") if (out / "split" / RANKING).exists() else None,
        failures=failures,
        missing=missing or {},
        warnings=[f"{model.name}: {line}" for model in MODELS.values() for line in read_warnings(out / model.stage)],
        config=to_yaml(config),
        commands=_commands(folder, out),
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
    for part, command in (read_commands(folder) | {"report": command_line()}).items():
        found.setdefault(command, []).append(part)
    return [(", ".join(made), command) for command, made in found.items()]


def _domain(role: str, entry: dict[str, Any]) -> dict[str, Any]:
    """A domain's facts and tables, cells as (text, is the column's best among the trained models)."""
    models, trained = entry["models"], [name for name in entry["models"] if name not in TRIVIAL]
    shown = {  # column -> trained model -> number, as exact as the table shows it
        title: {name: round(100 * share, 2) for name in trained if (share := score_at(models[name], path)) is not None}
        for title, path in MEASURES.items()
    }
    best = {title: (min if title == "ECE" else max)(of.values()) for title, of in shown.items() if len(of) > 1}
    rows = []
    for name, values in models.items():
        label, *cells = row(name, values)
        wins = [title in best and shown[title].get(name) == best[title] for title in HEADER[1:]]
        rows.append((label, list(zip(cells, wins, strict=True)), name in trained))
    return {"role": role, **entry, "header": HEADER, "rows": rows, "signs": sign_rows(entry)}


def _embedded(path: Path) -> str:
    """The picture as a data address, in WebP, which is a fifth of the PNG's size."""
    with reading(path, "a picture", AGAIN), Image.open(path) as picture, io.BytesIO() as packed:
        kind = "webp" if max(picture.size) <= 16383 else "png"  # the limit of WebP
        picture.convert("RGB").save(packed, kind, quality=88)
        return f"data:image/{kind};base64," + base64.b64encode(packed.getvalue()).decode("ascii")


def _curves(folder: Path, out: Path) -> list[Picture]:
    logs = {model.name: rows for model in MODELS.values() if (rows := read_log(out / model.stage))}
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
