"""Mean and standard deviation of the scores of several runs, as a Markdown table.

python -m report.summary runs/demo_seed0 runs/demo_seed1 runs/demo_seed2
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.cli import run
from report.metrics import score_at
from report.records import read_metrics
from report.tables import COLUMNS, markdown_table, number_text
from utils.errors import DataError

SHOWN = ("IoU clear", "IoU cloud", "precision cloud", "recall cloud", "pixel accuracy", "mIoU")


def summary(runs: Sequence[Path]) -> str:
    """One table per evaluated domain: models by row, mean ± standard deviation over the runs in percent.

    The standard deviation is that of a sample (n - 1); with one run it is left out. The last column lists each run's
    mIoU in the order given. A DataError if a metrics.json is missing or damaged, or of other domains or models.
    """
    paths = [run / "eval" / "metrics.json" for run in runs]
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(f"{missing[0]}: does not exist; run eval.py with this run's --out first")
    reports = [read_metrics(path.parent) for path in paths]
    shapes = [{role: [*entry["models"]] for role, entry in report.items()} for report in reports]
    if other := [path for path, shape in zip(paths, shapes, strict=True) if shape != shapes[0]]:
        raise DataError(
            f"{other[0]}: holds other domains or models, {json.dumps(shapes[paths.index(other[0])])}, than {paths[0]}, "
            f"{json.dumps(shapes[0])}; run eval.py of both with the same configuration"
        )
    parts = []
    for role, first in reports[0].items():
        rows = [["model", *SHOWN, "mIoU of each run"]]
        for model in first["models"]:
            values = [report[role]["models"][model] for report in reports]
            cells = [_cell([score_at(value, COLUMNS[title]) for value in values]) for title in SHOWN]
            rows.append([model, *cells, ", ".join(_cell([value["miou"]]) for value in values)])
        head = f"{role} ({first['root']}), {first['images']} images, {first['protocol']}"
        parts.append(f"{head}:\n\n{markdown_table(rows)}\n")
    return "\n".join(parts)


def _cell(values: list[float | None]) -> str:
    numbers = [100 * value for value in values if value is not None]
    if len(numbers) < len(values):
        return "-"
    return number_text(statistics.mean(numbers), sd=statistics.stdev(numbers) if len(numbers) > 1 else None)


if __name__ == "__main__":
    run(lambda runs: print(summary(runs)), [Path(folder) for folder in sys.argv[1:]] or [Path("runs/demo")])
