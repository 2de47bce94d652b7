"""Scores of several models as JSON, Markdown, CSV and LaTeX, and one row per image."""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from config.schema import Config
from engine.run import versions
from report.evaluation import Domain, DomainScores, ModelScores
from report.metrics import CLASSES, best_threshold, bootstrap, calibration_error, interval, score_at, scores, trivial
from report.repeatability import adaptation_warnings
from utils.files import write_text

TRIVIAL = {
    "all_clear": "all clear (trivial)",
    "all_cloud": "all cloud (trivial)",
    "brightness": "brightness threshold (chosen on these labels)",
}
COLUMNS = {  # title -> place in what `scores` gives
    **{f"{of} {name}": (of.lower(), name) for of in ("IoU", "precision", "recall", "F1") for name in CLASSES},
    "pixel accuracy": ("pixel_accuracy",),
    "balanced accuracy": ("balanced_accuracy",),
    "mIoU": ("miou",),
}
MEASURES = COLUMNS | {"ECE": ("ece",)}
HEADER = ["model", *COLUMNS, "mIoU, 95 % interval", "ECE"]
PAPER = {  # the columns of the published tables, by their true names
    **{name: COLUMNS[name] for name in ("IoU clear", "IoU cloud", "mIoU", "F1 clear", "F1 cloud")},
    **{f"{of} {name}": COLUMNS[f"{of} {name}"] for of in ("precision", "recall") for name in CLASSES},  # Re, CPA
    "PA": COLUMNS["pixel accuracy"],
    "BA": COLUMNS["balanced accuracy"],  # MCAP
}
FEW = 10  # images or scenes, below which a bootstrap interval is too narrow
NAMING = (
    "The published tables of this method call precision of a class its recall ('Re'), and recall its CPA; "
    "their MCAP is balanced accuracy. Here every column has its true name."
)


def report_of(domains: Sequence[DomainScores], config: Config) -> dict[str, Any]:
    """All numbers of an evaluation, as they stand in metrics.json; scores are in [0, 1], NaN where undefined."""
    return {
        "versions": versions(),
        "seed": config.seed,
        "head": config.eval.head,
        "naming": NAMING,
        "domains": {result.domain.role: _domain_report(result) for result in domains},
    }


def _domain_report(result: DomainScores) -> dict[str, Any]:
    domain, models = result.domain, result.models
    entry: dict[str, Any] = {
        "root": domain.config.root,
        "images": len(domain.images),
        "labelled": domain.labelled,
        "protocol": domain.protocol,
        "models": {},
        "signs": {
            name: {
                "mean_entropy": float(np.mean(model.entropy)),
                "head_agreement": float(np.mean(model.heads)),
                "cloud_share": float(np.mean(model.cloud)),
                "repeatability": model.repeatability,
            }
            for name, model in models.items()
        },
        "agreement": {f"{a} and {b}": float(np.mean(values)) for (a, b), values in result.agreement.items()},
    }
    if domain.role == "target":
        entry["warnings"] = adaptation_warnings({name: model.repeatability for name, model in models.items()})
    first = next(iter(models.values())).matrix
    if not first.sum():
        return entry
    threshold, by_brightness = best_threshold(result.brightness)
    matrices = {name: model.matrix for name, model in models.items()} | trivial(first) | {"brightness": by_brightness}
    entry["models"] = {name: scores(matrix) for name, matrix in matrices.items()}
    entry["models"]["brightness"]["threshold"] = threshold
    entry["cloud_share"] = float(first.sum(1)[1] / first.sum())
    groups = np.stack([_grouped(domain, model) for model in models.values()])
    resampled = dict(zip(models, bootstrap(groups), strict=True))
    entry["interval"] = {"over": "images" if domain.scenes is None else "scenes", "groups": groups.shape[1]}
    enough = groups.shape[1] > 1  # of one group every resample is the same
    for name, model in models.items():
        values = entry["models"][name]
        values["ece"] = calibration_error(np.asarray(model.calibration))
        values["miou_interval"] = interval(resampled[name]) if enough else None
        if "source_only" in models and name != "source_only":
            gain = resampled[name] - resampled["source_only"]
            values["gain"] = values["miou"] - entry["models"]["source_only"]["miou"]
            values["gain_interval"] = interval(gain) if enough else None
    return entry


def _grouped(domain: Domain, model: ModelScores) -> np.ndarray:
    """Confusion matrices (G, 2, 2), one per scene where scenes are known, else per image with a known pixel."""
    groups: dict[str, np.ndarray] = {}
    for name, matrix in zip(domain.scenes or [item.name for item in domain.images], model.matrices, strict=True):
        if matrix is not None and matrix.sum():
            groups[name] = groups.get(name, np.zeros((2, 2), np.int64)) + matrix
    return np.stack(list(groups.values()))


def write_tables(folder: Path, domains: Sequence[DomainScores], config: Config) -> None:
    """Write metrics.json, .md, .csv, .tex and images_ROLE.csv into `folder`."""
    report = report_of(domains, config)
    models = [[role, *row(*of)] for role, entry in report["domains"].items() for of in entry["models"].items()]
    with_null = json.loads(json.dumps(report), parse_constant=lambda nan: None)  # JSON has no NaN
    texts = {
        "metrics.json": json.dumps(with_null, indent=2) + "\n",
        "metrics.md": markdown(report),
        "metrics.csv": csv_text([["domain", *HEADER], *models]),
        "metrics.tex": latex(report),
        **{f"images_{result.domain.role}.csv": csv_text(image_rows(result)) for result in domains},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)


def markdown(report: dict[str, Any]) -> str:
    """One table of scores per labelled domain, one of label-free signs per domain."""
    text = []
    for role, entry in report["domains"].items():
        head = f"**{role}** {entry['root']}: {entry['images']} images, {entry['protocol']}"
        if entry["models"]:
            if entry["labelled"] < entry["images"]:
                head += f", {entry['labelled']} of them with labels"
            span = f"95 % intervals by bootstrap over {entry['interval']['groups']} {entry['interval']['over']}"
            if entry["interval"]["groups"] < FEW:
                span += ", too few to trust them"
            rows = [HEADER, *(row(name, values) for name, values in entry["models"].items())]
            text.append(f"{head}, {entry['cloud_share']:.1%} cloud. Percent; {span}.\n\n{markdown_table(rows)}\n\n")
        else:
            text.append(f"{head}. No label with a known pixel, so there are masks and signs, and no scores.\n\n")
        text.append(f"Signs that need no labels ({role}), percent:\n\n{markdown_table(sign_rows(entry))}\n")
        text += [f"\nWARNING: {warning}.\n" for warning in entry.get("warnings", [])]
        pairs = ", ".join(f"{names} {value:.1%}" for names, value in entry["agreement"].items())
        text.append(f"\nPixels on which two models agree: {pairs}.\n\n" if pairs else "\n")
    return "".join(text)


def sign_rows(entry: dict[str, Any]) -> list[list[str]]:
    """Header and one row per model: mean entropy, agreement of the two heads, predicted cloud share, repeatability."""
    rows = [["model", "mean entropy", "agreement of the two heads", "predicted cloud", "repeatability"]]
    return rows + [[name, *map(percent, signs.values())] for name, signs in entry["signs"].items()]


def row(name: str, values: dict[str, Any]) -> list[str]:
    """A model's row under `HEADER`."""
    edges = values.get("miou_interval")
    span = "-" if edges is None else f"{100 * edges[0]:.1f} to {100 * edges[1]:.1f}"
    numbers = (percent(score_at(values, path)) for path in COLUMNS.values())
    return [TRIVIAL.get(name, name), *numbers, span, percent(values.get("ece"))]


def percent(number: float | None) -> str:
    """A share as text, a dash where there is none."""
    return "-" if number is None or math.isnan(number) else f"{100 * number:.2f}"


def number_text(value: float | None, form: str = ".1f", sd: float | None = None) -> str:
    """A number, with its standard deviation where there is one; a dash for None."""
    return "-" if value is None else f"{value:{form}}" + ("" if sd is None else f" ± {sd:.1f}")


def markdown_table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of cells, the first one the header, as a Markdown table; after the first `left` columns to the right."""
    lines = [rows[0], ["---"] * left + ["--:"] * (len(rows[0]) - left), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def latex_tabular(rows: Sequence[Sequence[str]], comment: str) -> str:
    """The same as a LaTeX tabular below a comment; the cells are LaTeX already."""
    body = " \\\\\n".join(" & ".join(line) for line in rows)
    columns = "l" + "r" * (len(rows[0]) - 1)
    return f"% {comment}\n\\begin{{tabular}}{{{columns}}}\n{body} \\\\\n\\end{{tabular}}\n"


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows of values as CSV."""
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows(rows)
    return lines.getvalue()


def latex(report: dict[str, Any]) -> str:
    """The published tables' columns under their true names, one tabular per labelled domain; the best is bold."""
    parts = [f"% {NAMING}\n"]
    for role, entry in report["domains"].items():
        if not entry["models"]:
            continue
        models, trained = entry["models"], [*entry["signs"]]  # trivial baselines win no column
        shares = {name: [score_at(values, path) for path in PAPER.values()] for name, values in models.items()}
        best = np.fmax.reduce([shares[name] for name in trained])
        lines = [["model", *PAPER]]
        for name, numbers in shares.items():
            cells = [
                f"\\textbf{{{percent(number)}}}" if name in trained and number == top else percent(number)
                for number, top in zip(numbers, best, strict=True)
            ]
            lines.append([re.sub(r"[^\w.+ -]|_", "-", name), *cells])
        parts.append(latex_tabular(lines, f"{role}: {entry['protocol']}"))
    return "".join(parts)


def image_rows(result: DomainScores) -> list[list[str]]:
    """A header, and one row per model and image, by the share of wrong pixels, the largest of a model first."""
    numbers_of = ["error", "missed", "false_alarm", "iou_cloud", "cloud_true", "cloud_predicted"]
    table = [["model", "image", "scene", *numbers_of, "mean_entropy", "head_agreement"]]
    scenes = result.domain.scenes or [""] * len(result.domain.images)
    for name, model in result.models.items():
        rows = []
        for i, (item, matrix) in enumerate(zip(result.domain.images, model.matrices, strict=True)):
            measured, cloud = [math.nan] * 5, model.cloud[i]
            if matrix is not None and matrix.sum():
                (_, alarm), (missed, hit) = (matrix / matrix.sum()).tolist()
                union = alarm + missed + hit
                measured = [alarm + missed, missed, alarm, hit / union if union else math.nan, missed + hit]
                cloud = alarm + hit  # of the known pixels
            numbers = [*measured, cloud, model.entropy[i], model.heads[i]]
            rows.append((math.inf if math.isnan(measured[0]) else -measured[0], item.name, scenes[i], numbers))
        for _, image, scene, numbers in sorted(rows):
            table.append([name, image, scene, *("" if math.isnan(n) else f"{n:.6f}" for n in numbers)])
    return table
