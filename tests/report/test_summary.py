"""Mean and spread over runs."""

import json
from pathlib import Path

import numpy as np
import pytest

from report.metrics import scores
from report.summary import summary
from utils.errors import DataError


def report(run: Path, hits: int, models: tuple[str, ...] = ("student",)) -> Path:
    values = {model: scores(np.array([[50, 10], [40 - hits, hits]])) for model in models}
    domain = {"root": "data/t", "images": 3, "labelled": 3, "protocol": "held-back images", "models": values}
    domain |= {"cloud_share": 0.4, "interval": {"over": "images", "groups": 3}, "signs": {}, "agreement": {}}
    (run / "eval").mkdir(parents=True)
    (run / "eval/metrics.json").write_text(json.dumps({"domains": {"target": domain}}))
    return run


def test_mean_and_sample_deviation(tmp_path: Path) -> None:
    runs = [report(tmp_path / str(hits), hits) for hits in (10, 20, 30)]
    row = summary(runs).splitlines()[-1].split(" | ")
    recall = [25.0, 50.0, 75.0]  # 10, 20, 30 of 40
    assert row[4] == f"{sum(recall) / 3:.1f} ± 25.0"
    miou = [100 * (50 / (100 - hits) + hits / 50) / 2 for hits in (10, 20, 30)]
    assert row[6].startswith(f"{sum(miou) / 3:.1f} ±")
    assert row[7] == ", ".join(f"{value:.1f}" for value in miou) + " |"


def test_one_run_has_no_deviation(tmp_path: Path) -> None:
    assert "±" not in summary([report(tmp_path / "a", 10)])


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    one, other = report(tmp_path / "a", 10), report(tmp_path / "b", 10, ("student", "teacher"))
    with pytest.raises(DataError, match="holds other domains or models"):
        summary([one, other])
    with pytest.raises(DataError, match=r"metrics.json: does not exist; run eval.py"):
        summary([tmp_path / "nothing"])


@pytest.mark.parametrize(
    ("key", "value"), [("miou", "high"), ("miou", 7), ("iou", {}), ("pixel_accuracy", [0.5]), ("recall", None)]
)
def test_damaged_scores_are_named(tmp_path: Path, key: str, value: object) -> None:
    path = report(tmp_path / "a", 10) / "eval/metrics.json"
    values = json.loads(path.read_text())
    values["domains"]["target"]["models"]["student"][key] = value
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"a/eval/metrics\.json: is not the scores of .*run eval.py again"):
        summary([tmp_path / "a"])
