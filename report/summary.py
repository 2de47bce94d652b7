"""Mean and standard deviation of the scores of several runs, as a Markdown table.

python -m report.summary runs/demo_seed0 runs/demo_seed1 runs/demo_seed2
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report.metrics import score_at
from utils.errors import AsdaError, DataError
from utils.records import read_json, reading

COLUMNS = {
    "IoU clear": ("iou", "clear"),
    "IoU cloud": ("iou", "cloud"),
    "precision cloud": ("precision", "cloud"),
    "recall cloud": ("recall", "cloud"),
    "pixel accuracy": ("pixel_accuracy",),
    "mIoU": ("miou",),
}


def summary(runs: Sequence[Path]) -> str:
    """One table per evaluated domain: models by row, mean ± standard deviation over the runs in percent.

    The standard deviation is that of a sample (n - 1); with one run it is left out. The last column lists each run's
    mIoU in the order given.

    Raises:
        DataError: a run has no metrics.json or a damaged one, or the runs do not hold the same domains and models.
    """
    paths = [run / "eval" / "metrics.json" for run in runs]
    reports = [_read(path) for path in paths]
    shapes = [{role: [*part["models"]] for role, part in report.items()} for report in reports]
    if other := [path for path, shape in zip(paths, shapes, strict=True) if shape != shapes[0]]:
        raise DataError(
            f"{other[0]}: holds other domains or models, {json.dumps(shapes[paths.index(other[0])])}, than {paths[0]}, "
            f"{json.dumps(shapes[0])}; run eval.py of both with the same configuration"
        )
    parts = []
    for role, first in reports[0].items():
        lines = [["model", *COLUMNS, "mIoU of each run"], ["---", *["--:"] * (len(COLUMNS) + 1)]]
        for model in first["models"]:
            values = [report[role]["models"][model] for report in reports]
            cells = [_cell([value[column] for value in values]) for column in COLUMNS]
            lines.append([model, *cells, ", ".join(_cell([value["mIoU"]]) for value in values)])
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"{role} ({first['root']}), {first['images']} images, {first['protocol']}:\n\n{table}\n")
    return "\n".join(parts)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path}: does not exist; run eval.py with this run's --out first")
    with reading(path, "the scores of an evaluation", "run eval.py again"):
        return {
            role: {
                **{key: part[key] for key in ("root", "images", "protocol")},
                "models": {model: _scores(values) for model, values in part["models"].items()},
            }
            for role, part in read_json(path)["domains"].items()
        }


def _scores(values: Any) -> dict[str, float | None]:
    found = {column: score_at(values, path) for column, path in COLUMNS.items()}
    for column, score in found.items():
        if score is not None and not 0 <= score <= 1:
            raise ValueError(f"found {score} as {column}, expected a share")
    return found


def _cell(values: list[float | None]) -> str:
    numbers = [100 * value for value in values if value is not None]
    if len(numbers) < len(values):
        return "-"
    spread = f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.1f}{spread}"


if __name__ == "__main__":
    try:
        print(summary([Path(argument) for argument in sys.argv[1:]] or [Path("runs/demo")]))
    except AsdaError as error:
        sys.exit(f"error: {error}")
