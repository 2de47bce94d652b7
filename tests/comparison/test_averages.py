"""The averages over pairs, by hand."""

import statistics

import numpy as np
import pytest

from comparison.averages import averages, changes, grouped, repeatability_note
from comparison.results import Comparison, Result


def comparison(pair: str, **wrong: int) -> Comparison:
    """One image of 100 clear and 100 cloud pixels, of which each method gets so many of each class wrong."""
    results = [
        Result(name, 0, ["i"], [], np.array([[[100 - w, w], [w, 100 - w]]]), 1, 1.0, None, [], "last", None)
        for name, w in wrong.items()
    ]
    return Comparison(pair, "held-back images", results, methods=["source_only", "advent", "asda", "oracle"])


def miou(wrong: float) -> float:
    return 100 * (100 - wrong) / (100 + wrong)


PAIRS = [
    comparison("a", source_only=50, advent=40, asda=30, oracle=20),
    comparison("b", source_only=40, advent=45, asda=30, oracle=10),
    comparison("c", source_only=30, asda=20),
]


def test_mean_lowest_and_share_of_the_gap() -> None:
    rows = {row["method"]: row for row in averages(PAIRS)}
    gains = [miou(30) - miou(50), miou(30) - miou(40), miou(20) - miou(30)]
    row = rows["asda"]
    assert row["gain"] == pytest.approx(statistics.mean(gains)) and row["gain_sd"] == pytest.approx(
        statistics.stdev(gains)
    )
    assert (row["lowest_pair"], row["lowest"]) == ("b", pytest.approx(miou(30) - miou(40)))
    gaps = [miou(20) - miou(50), miou(10) - miou(40)]
    assert row["gap_share"] == pytest.approx(100 * sum(gains[:2]) / sum(gaps))  # c has no oracle
    assert rows["advent"]["pairs"] == 2 and rows["advent"]["lowest"] == pytest.approx(miou(45) - miou(40))
    assert rows["oracle"]["gap_share"] == pytest.approx(100)
    assert rows["source_only"]["gain"] is None and rows["source_only"]["miou"]["c"] == pytest.approx(miou(30))


def test_groups_have_a_table_each_and_a_single_pair_has_none() -> None:
    text = grouped(PAIRS, {"real": ["a", "b"], "drawn": ["c"]})
    assert "## real" in text and "## drawn" in text
    assert "| method | pairs | mean gain | lowest gain | gap to oracle closed | a | b |" in text
    assert f"| advent | 2 of 2 | {(miou(40) - miou(50) + miou(45) - miou(40)) / 2:+.1f} ± " in text
    assert f"{miou(45) - miou(40):+.1f} (b)" in text
    assert "## all pairs" in grouped(PAIRS, {}) and grouped(PAIRS[:1], {}) == ""
    assert "| advent | 0 of 1 | - | - | - | - |" in text


def beside(pair: str, **runs: tuple[int, float | None]) -> Comparison:
    """As `comparison`, each method with its repeatability beside."""
    plain = comparison(pair, **{name: wrong for name, (wrong, _) in runs.items()})
    results = [result._replace(repeatability=runs[result.method][1]) for result in plain.results]
    return plain._replace(results=results)


def test_repeatability_is_set_against_the_gain_of_every_run() -> None:
    pairs = [
        beside("a", source_only=(50, 0.3), advent=(40, 0.5), asda=(60, 0.2), dacs=(55, 0.4), oracle=(10, 0.9)),
        beside("b", source_only=(40, 0.5), advent=(50, 0.6), asda=(30, None)),
        beside("c", source_only=(40, None), advent=(50, 0.6)),
    ]
    found = changes(pairs)
    true = [miou(40) - miou(50), miou(60) - miou(50), miou(55) - miou(50), miou(50) - miou(40)]
    assert found[:, 0] == pytest.approx([20, -10, 10, 10]) and found[:, 1] == pytest.approx(true)
    text = repeatability_note(pairs)
    assert f"over 4 runs its change from source_only has a correlation of {np.corrcoef(*found.T)[0, 1]:+.2f}" in text
    assert "It falls in 1 of the 3 runs that lost, and in 0 of the 1 that did not." in text
    assert text in grouped(pairs, {}) and "too few runs" in repeatability_note(pairs[1:])
