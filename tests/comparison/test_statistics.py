"""The numbers of a comparison: known answers, properties of the paired tests."""

import statistics

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from comparison.results import Result
from comparison.statistics import BEST, table
from comparison.tables import markdown
from tests.comparison.examples import compared, matrices_of, miou, noisy, result, rows_of
from utils.errors import DataError


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


def test_failed_reference_leaves_the_scores() -> None:
    row = rows_of(compared(result("advent"), methods=["asda", "advent"]))["advent"]
    assert row["miou"] is not None and row["difference"] is None and row["wilcoxon_p"] is None


def test_best_on_labels_stands_apart() -> None:
    runs = [result("asda", best=matrices_of([10, 10])), result("advent")]
    found = rows_of(compared(*runs))
    assert found["asda"][BEST] == pytest.approx(miou(10)) and found["advent"][BEST] is None
    assert found["asda"]["miou"] == pytest.approx(miou(30))
    assert f" {BEST} |" in markdown(compared(*runs))


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
