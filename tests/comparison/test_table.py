"""The table of many runs: known answers, properties of the paired tests, files."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from comparison.published import read_published
from comparison.results import Comparison, Result
from comparison.statistics import BEST, table
from comparison.tables import csv_table, latex, markdown, write
from utils.errors import ConfigError, DataError

PUBLISHED = Path(__file__).parents[2] / "configs/compare/published.yaml"


def matrices_of(wrong: Sequence[int]) -> np.ndarray:
    """One image per entry: 100 clear and 100 cloud pixels, `wrong` of each called the other class."""
    return np.array([[[100 - w, w], [w, 100 - w]] for w in wrong], np.int64)


def result(method: str, seed: int = 0, wrong: Sequence[int] = (40, 20), **changes: Any) -> Result:
    values = Result(
        method=method,
        seed=seed,
        images=[f"{i:03}" for i in range(len(wrong))],
        scenes=[],
        matrices=matrices_of(wrong),
        steps=300,
        seconds=90.0,
        peak_mib=None,
        warnings=[],
        selected="last",
        best=None,
    )
    return values._replace(**changes)


def compared(*results: Result, **changes: Any) -> Comparison:
    return Comparison("a_to_b", "held-back images", results, **changes)


def rows_of(comparison: Comparison) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in table(comparison)}


def noisy(method: str, seed: int, mean: float = 20, images: int = 30) -> Result:
    """Errors that differ between images, methods and seeds."""
    rng = np.random.default_rng([seed, *method.encode()])
    return result(method, seed, rng.normal(mean, 6, images).clip(0, 100).astype(int).tolist())


def miou(wrong: float) -> float:
    """Of `matrices_of`, in percent: with a share e of each class wrong, IoU = (1 - e) / (1 + e)."""
    return 100 * (100 - wrong) / (100 + wrong)


def test_gain_gap_and_difference_by_hand() -> None:
    wrong = {"source_only": (50, 60), "advent": (30, 40), "asda": (20, 20), "oracle": (10, 10)}
    found = rows_of(
        compared(*(result(name, s, [w, w]) for name, pair in wrong.items() for s, w in zip((0, 1), pair, strict=True)))
    )
    means = {name: statistics.mean(map(miou, pair)) for name, pair in wrong.items()}
    gains = [miou(30) - miou(50), miou(40) - miou(60)]
    row = found["advent"]
    assert row["miou"] == pytest.approx(means["advent"]) and row["iou_cloud"] == pytest.approx(means["advent"])
    assert row["miou_sd"] == pytest.approx(statistics.stdev([miou(30), miou(40)]))
    assert row["precision_cloud"] == pytest.approx(65) and row["recall_cloud"] == pytest.approx(65)
    assert (row["gain"], row["gain_sd"]) == pytest.approx((statistics.mean(gains), statistics.stdev(gains)))
    gap = (means["advent"] - means["source_only"]) / (means["oracle"] - means["source_only"])
    assert row["gap_share"] == pytest.approx(100 * gap)
    assert row["difference"] == pytest.approx(means["advent"] - means["asda"])
    assert row["seeds_won"] == "0/2" and found["oracle"]["seeds_won"] == "2/2"
    assert found["source_only"]["gain"] is None and found["oracle"]["gap_share"] == pytest.approx(100)
    assert found["asda"]["difference"] is None and found["asda"]["p"] is None
    assert row["steps"] == 300 and row["minutes"] == 1.5 and row["peak_mib"] is None and BEST not in row


def test_no_share_of_a_gap_that_is_not_there() -> None:
    pair = result("source_only", wrong=(20, 20)), result("asda", wrong=(30, 30))
    assert rows_of(compared(*pair))["asda"]["gap_share"] is None
    assert rows_of(compared(*pair, result("oracle", wrong=(25, 25))))["asda"]["gap_share"] is None


def test_equal_results_do_not_differ() -> None:
    runs = [noisy("asda", seed) for seed in range(3)]
    row = rows_of(compared(*runs, *(run._replace(method="twin") for run in runs)))["twin"]
    assert (row["difference"], row["difference_low"], row["difference_high"]) == (0, 0, 0)
    assert (row["p"], row["wilcoxon_p"], row["seeds_won"]) == (1, 1, "0/3")


def test_better_on_every_image_is_significant() -> None:
    runs = [noisy("asda", seed) for seed in range(3)]
    better = [result("better", run.seed, np.maximum(run.matrices[:, 0, 1] - 4, 0).tolist()) for run in runs]
    row = rows_of(compared(*runs, *better))["better"]
    assert row["p"] < 0.01 and row["wilcoxon_p"] < 1e-4 and row["seeds_won"] == "3/3"
    assert 0 < row["difference_low"] < row["difference"] < row["difference_high"]


def test_interval_holds_the_difference_and_repeats() -> None:
    comparison = compared(*(noisy(name, seed) for name in ("asda", "other") for seed in range(3)))
    row = rows_of(comparison)["other"]
    assert row["difference_low"] < row["difference"] < row["difference_high"] and row["p"] > 0.05
    assert table(comparison) == table(comparison)


def test_seeds_widen_the_interval() -> None:
    """Every image is alike, so all spread is between seeds: Student's interval; one seed alone has none."""
    reference = [result("asda", seed, [20] * 12) for seed in range(3)]
    other = [result("other", seed, [20 + 5 * seed] * 12) for seed in range(3)]
    row = rows_of(compared(*reference, *other))["other"]
    gaps = [miou(20 + 5 * seed) - miou(20) for seed in range(3)]
    reach = 4.302653 * statistics.stdev(gaps) / 3**0.5  # the 97.5 % point of t with 2 degrees of freedom
    mean = statistics.mean(gaps)
    assert row["difference_low"] == pytest.approx(mean - reach) and row["difference_high"] == pytest.approx(
        mean + reach
    )
    assert row["p"] == pytest.approx(ttest_1samp(gaps, 0).pvalue)
    single = rows_of(compared(reference[1], other[1]))["other"]
    assert single["difference_low"] == pytest.approx(single["difference_high"])


def test_scenes_are_resampled_where_known() -> None:
    """Two images that mirror each other make one scene: over scenes nothing varies, over images it does."""
    runs = result("asda", wrong=[30] * 20), result("other", wrong=[10, 40] * 10)
    assert (row := rows_of(compared(*runs))["other"])["difference_low"] < row["difference_high"] - 1
    scenes = [str(i // 2) for i in range(20)]
    row = rows_of(compared(*(run._replace(scenes=scenes) for run in runs)))["other"]
    assert row["difference_low"] == pytest.approx(row["difference_high"])
    assert "over 10 scenes" in markdown(compared(*(run._replace(scenes=scenes) for run in runs)))


def test_one_group_has_no_interval() -> None:
    row = rows_of(compared(result("asda", wrong=[20]), result("other", wrong=[30])))["other"]
    assert row["difference"] == pytest.approx(miou(30) - miou(20))
    assert row["p"] is None and row["difference_low"] is None


def test_images_are_paired_by_name_and_unlabelled_ones_left_out() -> None:
    one = noisy("asda", 0)
    order = np.random.default_rng(0).permutation(len(one.images))
    shuffled = one._replace(method="twin", images=[one.images[i] for i in order], matrices=one.matrices[order])
    assert rows_of(compared(one, shuffled))["twin"]["wilcoxon_p"] == 1
    nothing = np.zeros((1, 2, 2), np.int64)
    more = [
        run._replace(images=[*run.images, "zzz"], matrices=np.concatenate([run.matrices, nothing]))
        for run in (one, shuffled)
    ]
    assert table(compared(*more)) == table(compared(one, shuffled))


def test_missing_seed_is_not_paired() -> None:
    runs = [noisy("asda", seed) for seed in range(3)] + [noisy("advent", seed) for seed in (0, 2)]
    comparison = compared(*runs)
    row = rows_of(comparison)["advent"]
    kept = rows_of(compared(*(run for run in runs if run.seed != 1)))["advent"]
    assert row["seeds"] == [0, 2] and row["seeds_missing"] == [1] and row["seeds_won"].endswith("/2")
    assert row["difference"] == pytest.approx(kept["difference"]) and row["p"] == kept["p"]
    text = markdown(comparison)
    assert "| advent | 2 of 3 |" in text and "WARNING: advent: has no result of seed 1" in text


def test_failed_method_has_an_empty_row() -> None:
    comparison = compared(result("asda"), methods=["clan", "asda"])
    assert [row["method"] for row in table(comparison)] == ["clan", "asda"]
    text = markdown(comparison)
    cells = next(line for line in text.splitlines() if line.startswith("| clan")).strip("| ").split(" | ")
    assert set(cells[1:]) == {"-"} and "WARNING: clan: has no result" in text


def test_failed_reference_leaves_the_scores() -> None:
    row = rows_of(compared(result("advent"), methods=["asda", "advent"]))["advent"]
    assert row["miou"] is not None and row["difference"] is None and row["wilcoxon_p"] is None


def test_best_on_labels_stands_apart() -> None:
    runs = [result("asda", best=matrices_of([10, 10])), result("advent")]
    found = rows_of(compared(*runs))
    assert found["asda"][BEST] == pytest.approx(miou(10)) and found["advent"][BEST] is None
    assert found["asda"]["miou"] == pytest.approx(miou(30))
    assert f" {BEST} |" in markdown(compared(*runs))


def test_notes_name_their_runs() -> None:
    rule = "lowest mean entropy of 4 checkpoints"
    runs = [result("asda", seed, warnings=["contrast was 0 on every step"], selected=rule) for seed in (0, 1)]
    text = markdown(compared(*runs, result("advent")))
    assert "\nWARNING: asda, seeds 0, 1: contrast was 0 on every step\n" in text
    assert f"Checkpoint: {rule} (all others)." in text and "Checkpoint: last (advent)." in text
    assert "Protocol: held-back images." in text
    assert f"Checkpoint: {rule} (all runs)." in markdown(compared(*runs))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (result("asda"), "asda, seed 0: there are two results"),
        (result("clan", images=["x", "y"]), "clan, seed 0: scored on other images than asda"),
        (result("clan", matrices=2 * matrices_of([40, 20])), "clan, seed 0: scored against other labels than asda"),
        (result("clan", matrices=0 * matrices_of([40, 20])), "clan, seed 0: no image has a label"),
    ],
)
def test_results_that_cannot_be_paired_are_refused(second: Result, message: str) -> None:
    with pytest.raises(DataError, match=message):
        table(compared(result("asda"), second))


def test_latex_escapes_names_and_makes_the_best_bold() -> None:
    runs = result("source_only"), result("asda", wrong=(20, 20)), result("oracle", wrong=(5, 5))
    text = latex(compared(*runs))
    assert r"source\_only &" in text and "source_only &" not in text and r"95 \% interval" in text
    assert text.count(r"\textbf") == 1 and rf"asda & \textbf{{{miou(20):.1f}}}" in text
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len({line.count("&") for line in lines}) == 1 and len(lines) == 4


def test_published_rows_stand_under_the_table() -> None:
    published = read_published(PUBLISHED, "ms_to_whu")
    text = markdown(compared(result("asda", wrong=(20, 20)), published=published))
    row = f"| asda | {miou(20):.1f} | 63.87 | 73.98 | 53.76 | README of gasking/ASDA, figure 3 |"
    assert "### Published" in text and row in text and "| clan | - | 27.77 | - | - |" in text


def test_published_file_agrees_with_itself() -> None:
    pairs = [read_published(PUBLISHED, pair) for pair in ("ms_to_whu", "whu_to_95cloud")]
    for entry in (entry for rows in pairs for entry in rows if None not in entry):
        assert (entry.iou_clear + entry.iou_cloud) / 2 == pytest.approx(entry.miou, abs=0.01)
    assert [len(rows) for rows in pairs] == [12, 12] and read_published(PUBLISHED, "other") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not valid YAML"),
        ("[]", "found list, expected a mapping"),
        ("p: 3", "p is int, expected a list"),
        ("p: [3]", r"p\[0\] is int"),
        ("p: [{method: a, miuo: 3}]", r"p\[0\].miuo: unknown key"),
        ("p: [{method: a, source: s}]", r"p\[0\].miou: found None"),
        ("p: [{method: a, source: s, miou: 1}, {method: a, source: s, miou: 101}]", r"p\[1\].miou: found 101"),
        ("p: [{method: a, miou: 3}]", r"p\[0\].source: found None, expected a text"),
    ],
)
def test_faults_in_published_rows_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"published.yaml: .*{message}"):
        read_published(path, "p")


def test_missing_published_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing.yaml: cannot be read"):
        read_published(tmp_path / "nothing.yaml", "p")


def test_files(tmp_path: Path) -> None:
    published = read_published(PUBLISHED, "ms_to_whu")
    first = compared(*(noisy(name, s) for name in ("source_only", "asda", "oracle") for s in (0, 1)), methods=["clan"])
    second = compared(result("asda", peak_mib=512.0), published=published)._replace(pair="c_to_d")
    write(tmp_path / "out", [first, second])
    names = {"table.md", "table.csv", "table.tex", "results.json", "plot_a_to_b.png", "plot_c_to_d.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    rows = list(csv.DictReader((tmp_path / "out/table.csv").open()))
    assert [(row["pair"], row["method"]) for row in rows] == [
        *(("a_to_b", name) for name in ("clan", "source_only", "asda", "oracle")),
        ("c_to_d", "asda"),
    ]
    assert csv_table([first, second]) == (tmp_path / "out/table.csv").read_text()
    numbers = json.loads((tmp_path / "out/results.json").read_text())
    assert numbers["a_to_b"]["table"] == table(first) and numbers["c_to_d"]["runs"][0]["peak_mib"] == 512
    assert (tmp_path / "out/plot_a_to_b.png").read_bytes().startswith(b"\x89PNG")
    assert "## a_to_b" in (tmp_path / "out/table.md").read_text()


def test_a_method_may_gain_over_a_baseline_of_its_own() -> None:
    runs = [
        result("source_only", wrong=[50, 50]),
        result("other_source", wrong=[40, 40]),
        result("other", wrong=[30, 30]),
    ]
    comparison = compared(
        *runs, result("oracle", wrong=[10, 10]), baselines={"other": "other_source"}, reference="other"
    )
    row = rows_of(comparison)["other"]
    assert row["gain"] == pytest.approx(miou(30) - miou(40)) and row["gap_share"] is None
    assert "other over other_source" in markdown(comparison)


def test_a_seed_that_failed_everywhere_is_missing() -> None:
    text = markdown(compared(result("asda"), result("advent"), seeds=[0, 1]))
    assert "asda: has no result of seed 1" in text and "advent: has no result of seed 1" in text
