"""Scores of several models as JSON, Markdown, CSV and LaTeX, and one row per image."""

from __future__ import annotations

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
from report.evaluation import Survey
from report.metrics import CLASSES, best_threshold, bootstrap, calibration_error, interval, score_at, scores, trivial
from report.repeatability import harm_foretold
from utils.files import write_text

TRIVIAL = {
    "all_clear": "all clear (trivial)",
    "all_cloud": "all cloud (trivial)",
    "brightness": "brightness threshold (chosen on these labels)",
}
HEADER = [
    "model",
    *(f"{measure} {name}" for measure in ("IoU", "precision", "recall", "F1") for name in CLASSES),
    "pixel accuracy",
    "balanced accuracy",
    "mIoU",
    "mIoU, 95 % interval",
    "ECE",
]
FEW = 10  # images or scenes, below which a bootstrap interval is too narrow
IMAGE_HEADER = [
    *("model", "image", "scene", "error", "missed", "false_alarm", "iou_cloud", "cloud_true", "cloud_predicted"),
    *("mean_entropy", "head_agreement"),
]
NAMING = (
    "The published tables of this method call precision of a class its recall ('Re'), and recall its CPA; "
    "their MCAP is balanced accuracy. Here every column has its true name."
)


def report_of(surveys: Sequence[Survey], config: Config) -> dict[str, Any]:
    """All numbers of an evaluation, as they stand in metrics.json; scores are in [0, 1], NaN where undefined."""
    return {
        "versions": versions(),
        "seed": config.seed,
        "head": config.eval.head,
        "naming": NAMING,
        "domains": {result.domain.role: _domain_report(result) for result in surveys},
    }


def _domain_report(result: Survey) -> dict[str, Any]:
    domain, tallies = result.domain, result.tallies
    entry: dict[str, Any] = {
        "root": domain.config.root,
        "images": len(domain.images),
        "labelled": domain.labelled,
        "protocol": domain.protocol,
        "models": {},
        "signs": {
            name: {
                "mean_entropy": float(np.mean(tally.entropy)),
                "head_agreement": float(np.mean(tally.heads)),
                "cloud_share": float(np.mean(tally.cloud)),
                "repeatability": tally.repeatability,
            }
            for name, tally in tallies.items()
        },
        "agreement": {f"{a} and {b}": float(np.mean(values)) for (a, b), values in result.agreement.items()},
    }
    if domain.role == "target":
        entry["warnings"] = harm_foretold({name: signs["repeatability"] for name, signs in entry["signs"].items()})
    first = next(iter(tallies.values())).matrix
    if not first.sum():
        return entry
    threshold, by_brightness = best_threshold(result.brightness)
    matrices = {name: tally.matrix for name, tally in tallies.items()} | trivial(first) | {"brightness": by_brightness}
    entry["models"] = {name: scores(matrix) for name, matrix in matrices.items()}
    entry["models"]["brightness"]["threshold"] = threshold
    entry["cloud_share"] = float(first.sum(1)[1] / first.sum())
    groups = np.stack([_grouped(result, name) for name in tallies])
    resampled = dict(zip(tallies, bootstrap(groups), strict=True))
    entry["interval"] = {"over": "images" if domain.scenes is None else "scenes", "groups": groups.shape[1]}
    enough = groups.shape[1] > 1  # of one group every resample is the same
    for name, tally in tallies.items():
        values = entry["models"][name]
        values["ece"] = calibration_error(np.asarray(tally.calibration))
        values["miou_interval"] = interval(resampled[name]) if enough else None
        if "source_only" in tallies and name != "source_only":
            gain = resampled[name] - resampled["source_only"]
            values["gain"] = values["miou"] - entry["models"]["source_only"]["miou"]
            values["gain_interval"] = interval(gain) if enough else None
    return entry


def _grouped(result: Survey, model: str) -> np.ndarray:
    """Confusion matrices (G, 2, 2), one per scene where scenes are known, else per image with a known pixel."""
    names = result.domain.scenes or [item.name for item in result.domain.images]
    groups: dict[str, np.ndarray] = {}
    for name, matrix in zip(names, result.tallies[model].matrices, strict=True):
        if matrix is not None and matrix.sum():
            groups[name] = groups.get(name, np.zeros((2, 2), np.int64)) + matrix
    return np.stack(list(groups.values()))


def write_tables(folder: Path, surveys: Sequence[Survey], config: Config) -> None:
    """Write metrics.json, .md, .csv, .tex and images_ROLE.csv into `folder`.

    Raises:
        DataError: a file cannot be written.
    """
    report = report_of(surveys, config)
    texts = {
        "metrics.json": json.dumps(_nan_to_null(report), indent=2) + "\n",
        "metrics.md": markdown(report),
        "metrics.csv": _csv(report),
        "metrics.tex": latex(report),
        **{f"images_{result.domain.role}.csv": _image_rows(result) for result in surveys},
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
            text.append(f"{head}, {entry['cloud_share']:.1%} cloud. Percent; {span}.\n\n")
            text.append(
                markdown_table([HEADER, *(row(name, values) for name, values in entry["models"].items())]) + "\n\n"
            )
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
    return rows + [[name, *(_percent(value) for value in signs.values())] for name, signs in entry["signs"].items()]


def row(name: str, values: dict[str, Any]) -> list[str]:
    """A model's row under `HEADER`."""
    numbers = [values[measure][kind] for measure in ("iou", "precision", "recall", "f1") for kind in CLASSES]
    numbers += [values["pixel_accuracy"], values["balanced_accuracy"], values["miou"]]
    edges = values.get("miou_interval")
    span = "-" if edges is None else f"{100 * edges[0]:.1f} to {100 * edges[1]:.1f}"
    return [TRIVIAL.get(name, name), *map(_percent, numbers), span, _percent(values.get("ece"))]


def _percent(number: float | None) -> str:
    return "-" if number is None or math.isnan(number) else f"{100 * number:.2f}"


def number_text(value: float | None, form: str = ".1f", sd: float | None = None) -> str:
    """A number, with its standard deviation where there is one; a dash for None."""
    if value is None:
        return "-"
    return f"{value:{form}}" + ("" if sd is None else f" ± {sd:.1f}")


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first one the header, as a Markdown table; numbers to the right."""
    lines = [rows[0], ["---", *["--:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def latex_tabular(rows: Sequence[Sequence[str]], comment: str) -> str:
    """The same as a LaTeX tabular below a comment; the cells are LaTeX already."""
    body = " \\\\\n".join(" & ".join(line) for line in rows)
    columns = f"l{'r' * (len(rows[0]) - 1)}"
    return f"% {comment}\n\\begin{{tabular}}{{{columns}}}\n{body} \\\\\n\\end{{tabular}}\n"


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows of values as CSV."""
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows(rows)
    return lines.getvalue()


def _csv(report: dict[str, Any]) -> str:
    models = [
        [role, *row(name, values)]
        for role, entry in report["domains"].items()
        for name, values in entry["models"].items()
    ]
    return csv_text([["domain", *HEADER], *models])


# The columns of the published tables, by their true names; in comments, what the publication calls them.
PAPER = (
    ("IoU clear", ("iou", "clear")),
    ("IoU cloud", ("iou", "cloud")),
    ("mIoU", ("miou",)),
    ("F1 clear", ("f1", "clear")),
    ("F1 cloud", ("f1", "cloud")),
    ("precision clear", ("precision", "clear")),  # Re
    ("precision cloud", ("precision", "cloud")),  # Re
    ("recall clear", ("recall", "clear")),  # CPA
    ("recall cloud", ("recall", "cloud")),  # CPA
    ("PA", ("pixel_accuracy",)),
    ("BA", ("balanced_accuracy",)),  # MCAP
)


def latex(report: dict[str, Any]) -> str:
    """The published tables' columns under their true names, one tabular per labelled domain; the best is bold."""
    parts = [f"% {NAMING}\n"]
    for role, entry in report["domains"].items():
        if not entry["models"]:
            continue
        columns = [[score_at(values, path) for values in entry["models"].values()] for _, path in PAPER]
        trained = len(entry["signs"])  # trivial baselines follow the models and win no column
        best = [max((v for v in column[:trained] if not math.isnan(v)), default=math.nan) for column in columns]
        lines = [["model", *(title for title, _ in PAPER)]]
        for i, name in enumerate(entry["models"]):
            cells = [
                f"\\textbf{{{_percent(column[i])}}}" if i < trained and column[i] == top else _percent(column[i])
                for column, top in zip(columns, best, strict=True)
            ]
            lines.append([re.sub(r"[^\w.+ -]|_", "-", name), *cells])
        parts.append(latex_tabular(lines, f"{role}: {entry['protocol']}"))
    return "".join(parts)


def _image_rows(result: Survey) -> str:
    """One row per model and image, those with the largest share of wrong pixels first within each model."""
    lines: list[Sequence[Any]] = [IMAGE_HEADER]
    scenes = result.domain.scenes or [""] * len(result.domain.images)
    for name, tally in result.tallies.items():
        rows: list[tuple[float, str, str, list[float]]] = []
        for i, item in enumerate(result.domain.images):
            measured, alarm, hit = [math.nan] * 5, 0.0, 0.0
            if (matrix := tally.matrices[i]) is not None and matrix.sum():
                (_, alarm), (missed, hit) = (matrix / matrix.sum()).tolist()
                union = alarm + missed + hit
                measured = [alarm + missed, missed, alarm, hit / union if union else math.nan, missed + hit]
            found = tally.cloud[i] if math.isnan(measured[0]) else alarm + hit  # of the known pixels
            numbers = [*measured, found, tally.entropy[i], tally.heads[i]]
            rows.append((math.inf if math.isnan(measured[0]) else -measured[0], item.name, scenes[i], numbers))
        for _, image, scene, numbers in sorted(rows):
            lines.append([name, image, scene, *("" if math.isnan(n) else f"{n:.6f}" for n in numbers)])
    return csv_text(lines)


def _nan_to_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_to_null(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_nan_to_null(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
