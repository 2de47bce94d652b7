"""Scores of several models as JSON, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.config import Config
from utils.metrics import CLASSES, scores, trivial
from utils.run import versions, write_text

TRIVIAL = {"all_clear": "all clear (trivial)", "all_cloud": "all cloud (trivial)"}


class DomainScores(NamedTuple):
    """The confusion matrices of all models on one domain's evaluation images."""

    role: str
    root: str
    protocol: str
    images: int
    labelled: int
    matrices: dict[str, np.ndarray]


def write_tables(folder: Path, results: list[DomainScores], config: Config) -> str:
    """Write metrics.json, metrics.md and metrics.csv into `folder`, and return the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"versions": versions(), "seed": config.seed, "head": config.eval.head, "domains": {}}
    text, rows = [], []
    for result in results:
        head = f"**{result.role}** {result.root}: {result.images} images, {result.protocol}"
        entry: dict[str, Any] = {
            "root": result.root,
            "images": result.images,
            "protocol": result.protocol,
            "models": {},
        }
        report["domains"][result.role] = entry
        if not result.labelled:
            text.append(f"{head}. No labels, so there are masks and no scores.\n")
            continue
        if result.labelled < result.images:
            head += f", {result.labelled} of them with labels"
        baselines = trivial(next(iter(result.matrices.values())))
        entry["models"] = {name: scores(matrix) for name, matrix in (result.matrices | baselines).items()}
        true = next(iter(result.matrices.values())).sum(1)
        entry["cloud_share"] = float(true[1] / true.sum())
        table = [[TRIVIAL.get(name, name), *_columns(values)] for name, values in entry["models"].items()]
        text.append(f"{head}, {entry['cloud_share']:.1%} cloud. Percent.\n\n{_markdown(table)}\n")
        rows += [[result.role, *row] for row in table]
    write_text(folder / "metrics.json", json.dumps(_nan_to_null(report), indent=2) + "\n")
    write_text(folder / "metrics.md", "\n".join(text))
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([["domain", *HEADER], *rows])
    write_text(folder / "metrics.csv", lines.getvalue())
    return "\n".join(text)


HEADER = [
    "model",
    *(f"{measure} {name}" for measure in ("IoU", "precision", "recall", "F1") for name in CLASSES),
    "pixel accuracy",
    "balanced accuracy",
    "mIoU",
]


def _columns(values: dict[str, Any]) -> list[str]:
    numbers = [values[measure][name] for measure in ("iou", "precision", "recall", "f1") for name in CLASSES]
    numbers += [values["pixel_accuracy"], values["balanced_accuracy"], values["miou"]]
    return ["-" if math.isnan(number) else f"{100 * number:.2f}" for number in numbers]


def _markdown(rows: list[list[str]]) -> str:
    lines = [HEADER, ["---", *["--:"] * (len(HEADER) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _nan_to_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_to_null(part) for key, part in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
