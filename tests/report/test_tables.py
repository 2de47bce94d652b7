"""Tables of a hand-made evaluation: every number where it belongs, in every format."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from config.schema import Config, DomainConfig
from datasets.decoder import Decoder
from datasets.files import Item
from datasets.images import ImageSet
from report.evaluation import Domain, DomainScores, ModelScores
from report.metrics import calibration_bins
from report.tables import markdown, report_of, write_tables

GOOD, BAD, EMPTY = np.array([[60, 0], [10, 30]]), np.array([[30, 30], [30, 10]]), np.array([[100, 0], [0, 0]])


def of_model(*matrices: np.ndarray | None) -> ModelScores:
    """Sure of everything, right as often as its first matrix says."""
    first = next((m for m in matrices if m is not None), None)
    binned: np.ndarray | float = 0.0
    if first is not None:
        label = np.repeat([0, 0, 1, 1], first.ravel())
        found = np.repeat([0, 1, 0, 1], first.ravel())
        binned = calibration_bins(label=label, prediction=found, confidence=np.ones(label.size))
    count = len(matrices)
    return ModelScores([*matrices], binned, [0.2, 0.4, 0.6][:count], [1.0, 0.9, 0.8][:count], [0.3, 0.2, 0.1][:count])


def hand_made(labelled: bool = True, scenes: list[str] | None = None) -> DomainScores:
    names = ["a", "b", "c"]
    items = [
        Item(name, (Path(f"{name}.png"),), Path("l.png") if labelled else None, scene)
        for name, scene in zip(names, scenes or [None] * 3, strict=True)
    ]
    images = ImageSet(tuple(items), Decoder(("red", "green", "blue")))
    domain = Domain("target", DomainConfig(root="data/x"), "held-back images", images)
    good = [GOOD, GOOD, EMPTY] if labelled else [None] * 3
    bad = [BAD, GOOD, EMPTY] if labelled else [None] * 3
    brightness = np.zeros((2, 256), np.int64)
    brightness[0, 10], brightness[1, 200] = 220 * labelled, 80 * labelled
    models = {"source_only": of_model(*bad), "student": of_model(*good)}
    return DomainScores(domain, models, {("source_only", "student"): [0.5, 1.0, 1.0]}, brightness)


def test_json(tmp_path: Path) -> None:
    write_tables(tmp_path, [hand_made()], Config())
    report = json.loads((tmp_path / "metrics.json").read_text())["domains"]["target"]
    student = report["models"]["student"]
    assert student["confusion"] == [[220, 0], [20, 60]]
    assert student["precision"]["cloud"] == 1 and student["recall"]["cloud"] == 0.75
    assert student["ece"] == pytest.approx(0.1)  # sure, and wrong in 10 of 100 pixels
    low, high = student["miou_interval"]
    assert low < student["miou"] < high
    source = report["models"]["source_only"]
    assert student["gain"] == pytest.approx(student["miou"] - source["miou"])
    assert student["gain_interval"][0] == 0 <= student["gain"] < student["gain_interval"][1]
    assert report["models"]["brightness"]["miou"] == 1 and 10 <= report["models"]["brightness"]["threshold"] < 200
    assert report["models"]["all_clear"]["precision"]["cloud"] is None
    assert report["interval"] == {"over": "images", "groups": 3}
    assert report["agreement"] == {"source_only and student": pytest.approx(2.5 / 3)}
    assert report["signs"]["student"]["mean_entropy"] == pytest.approx(0.4)


def test_intervals_over_scenes(tmp_path: Path) -> None:
    report = report_of([hand_made(scenes=["s", "s", "t"])], Config())["domains"]["target"]
    assert report["interval"] == {"over": "scenes", "groups": 2}


def test_rows_per_image_are_sorted_by_error(tmp_path: Path) -> None:
    write_tables(tmp_path, [hand_made(scenes=["s", "s", "t"])], Config())
    rows = list(csv.DictReader((tmp_path / "images_target.csv").open()))
    assert [(row["model"], row["image"]) for row in rows] == [
        *(("source_only", name) for name in "abc"),
        *(("student", name) for name in "abc"),
    ]
    first = rows[0]
    assert (float(first["error"]), float(first["missed"]), float(first["false_alarm"])) == (0.6, 0.3, 0.3)
    assert float(first["iou_cloud"]) == pytest.approx(10 / 70, abs=1e-6) and float(first["cloud_true"]) == 0.4
    assert rows[2]["iou_cloud"] == "" and rows[2]["scene"] == "t"  # no cloud, none predicted
    for model in ("source_only", "student"):
        errors = [float(row["error"]) for row in rows if row["model"] == model]
        assert errors == sorted(errors, reverse=True)


def test_markdown_csv_and_latex_hold_the_same_numbers(tmp_path: Path) -> None:
    write_tables(tmp_path, [hand_made()], Config())
    text, tex = (tmp_path / "metrics.md").read_text(), (tmp_path / "metrics.tex").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("| student") and "to" in line]
    row = next(row for row in csv.DictReader((tmp_path / "metrics.csv").open()) if row["model"] == "student")
    assert [cell.strip() for cell in line.strip("|").split("|")] == list(row.values())[1:]
    assert row["recall cloud"] == "75.00" and row["precision cloud"] == "100.00" and row["ECE"] == "10.00"
    (line,) = [line for line in tex.splitlines() if line.startswith("student")]
    cells = line.removesuffix(" \\\\").split(" & ")
    header = next(line for line in tex.splitlines() if line.startswith("model")).removesuffix(" \\\\").split(" & ")
    assert len(cells) == len(header) == tex.count("r", tex.index("{l"), tex.index("}", tex.index("{l"))) + 1
    assert cells[header.index("recall cloud")] == "\\textbf{75.00}"
    assert cells[header.index("precision cloud")] == "\\textbf{100.00}"
    assert "all cloud (trivial)" in text and "all\\_cloud" not in tex
    assert "\\textbf{100.00}" not in next(line for line in tex.splitlines() if line.startswith("all-clear"))
    assert "its CPA" in tex


def test_without_labels_there_are_signs_and_no_scores(tmp_path: Path) -> None:
    write_tables(tmp_path, [hand_made(labelled=False)], Config())
    report = json.loads((tmp_path / "metrics.json").read_text())["domains"]["target"]
    assert report["models"] == {} and report["labelled"] == 0
    assert report["signs"]["student"] == {"mean_entropy": pytest.approx(0.4), "head_agreement": pytest.approx(0.9),
                                          "cloud_share": pytest.approx(0.2), "repeatability": None}  # fmt: skip
    text = (tmp_path / "metrics.md").read_text()
    assert "No label with a known pixel" in text and "| student | 40.00 | 90.00 | 20.00 |" in text and "nan" not in text
    rows = list(csv.DictReader((tmp_path / "images_target.csv").open()))
    assert all(row["error"] == "" and row["mean_entropy"] for row in rows)


def test_a_fall_of_repeatability_is_a_warning_on_the_target_alone(tmp_path: Path) -> None:
    result = hand_made()
    for model, value in (("source_only", 0.5), ("student", 0.4)):
        result.models[model].repeatability = value
    write_tables(tmp_path, [result], Config())
    text = (tmp_path / "metrics.md").read_text()
    assert "| student | 40.00 | 90.00 | 20.00 | 40.00 |" in text
    assert text.count("WARNING: student: adaptation may have harmed.") == 1
    assert len(json.loads((tmp_path / "metrics.json").read_text())["domains"]["target"]["warnings"]) == 1
    source = result._replace(domain=result.domain._replace(role="source"))
    assert "WARNING" not in markdown(report_of([source], Config()))


def test_partly_labelled_domains_say_so() -> None:
    result = hand_made()
    for each in result.models.values():
        each.matrices[2] = None
    *first, last = result.domain.images
    images = replace(result.domain.images, items=(*first, last._replace(label=None)))
    result = result._replace(domain=result.domain._replace(images=images))
    report = report_of([result], Config())
    assert "2 of them with labels" in markdown(report)
    assert report["domains"]["target"]["interval"]["groups"] == 2


def test_labels_without_a_known_pixel_are_no_labels(tmp_path: Path) -> None:
    result = hand_made()
    for each in result.models.values():
        each.matrices[:] = [np.zeros((2, 2), np.int64)] * 3
    result.brightness[:] = 0
    write_tables(tmp_path, [result], Config())
    assert json.loads((tmp_path / "metrics.json").read_text())["domains"]["target"]["models"] == {}
    assert "No label with a known pixel" in (tmp_path / "metrics.md").read_text()


def test_an_image_without_a_known_pixel_does_not_enter_the_intervals() -> None:
    result = hand_made()
    for each in result.models.values():
        each.matrices[0] = np.zeros((2, 2), np.int64)
    entry = report_of([result], Config())["domains"]["target"]
    assert entry["interval"]["groups"] == 2
    assert not any(math.isnan(edge) for edge in entry["models"]["student"]["miou_interval"])


def test_one_image_has_no_interval(tmp_path: Path) -> None:
    result = hand_made()
    for each in result.models.values():
        each.matrices[1:] = [None, None]
    write_tables(tmp_path, [result], Config())
    student = json.loads((tmp_path / "metrics.json").read_text())["domains"]["target"]["models"]["student"]
    assert student["miou_interval"] is None and student["gain_interval"] is None and student["gain"] > 0
    assert "too few to trust" in (tmp_path / "metrics.md").read_text()


def test_a_class_that_is_absent_is_a_dash_and_null(tmp_path: Path) -> None:
    result = hand_made()
    for each in result.models.values():
        each.matrices[:] = [EMPTY, EMPTY, EMPTY]
    result.brightness[1] = 0
    write_tables(tmp_path, [result], Config())
    student = json.loads((tmp_path / "metrics.json").read_text())["domains"]["target"]["models"]["student"]
    assert student["iou"] == {"clear": 1, "cloud": None} and student["miou"] == 1
    assert not math.isnan(student["miou_interval"][0])
    assert "| student | 100.00 | - |" in (tmp_path / "metrics.md").read_text()
