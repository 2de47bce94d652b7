"""The numbers of a comparison: scores over seeds, gains, and paired tests against the reference."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student
from scipy.stats import wilcoxon

from comparison.results import Comparison, Result, paired
from report.metrics import bootstrap, score_at, scores
from utils.errors import DataError

BASELINE, ORACLE = "source_only", "oracle"
BEST = "best on target labels (not a fair choice)"
DRAWS = 2000
MEASURES = {
    "miou": ("mIoU", ("miou",)),
    "iou_clear": ("IoU clear", ("iou", "clear")),
    "iou_cloud": ("IoU cloud", ("iou", "cloud")),
    "precision_cloud": ("precision cloud", ("precision", "cloud")),
    "recall_cloud": ("recall cloud", ("recall", "cloud")),
}
Runs = dict[tuple[str, int], Result]  # by method and seed
Resampled = dict[tuple[str, int], np.ndarray]  # by the same, mIoU in percent, (DRAWS,)


def table(comparison: Comparison) -> list[dict[str, Any]]:
    """One row of numbers per method, in percent where they are scores; None stands where there is nothing to say.

    KEY and KEY_sd are mean and sample standard deviation over the method's seeds, KEY of `MEASURES`, and so is `BEST`,
    the mIoU at the checkpoint that is best on the labels. `gain` is the mean over shared seeds of the difference to
    source_only, `gap_share` = (method - source_only) / (oracle - source_only) of the means over the seeds all three
    share. `difference` and what follows it compare with the reference on shared seeds: see `paired_interval`; the
    Wilcoxon test is over images, of the difference of the share of wrong pixels, averaged over seeds.

    Two results of one seed of a method, and results that are not of the same images and labels, raise DataError.
    """
    results, misfits = paired(comparison.results)
    if misfits:
        raise DataError(misfits[0])
    runs = {(result.method, result.seed): result for result in results}
    resampled, groups = _resampled(runs), len({*resampling_units(results)[1]})
    seeds = {*comparison.seeds, *(result.seed for result in results)}
    with_best = any(result.best is not None for result in results)
    rows = []
    for method in dict.fromkeys([*comparison.methods, *(result.method for result in results)]):
        of_method = [result for result in results if result.method == method]
        done = [result.seed for result in of_method]
        row: dict[str, Any] = {"method": method, "seeds": done, "seeds_missing": sorted(seeds - {*done})}
        for key, (_, path) in MEASURES.items():
            row[key], row[f"{key}_sd"] = spread([_score(result.matrices, path) for result in of_method])
        row["miou_of_each_seed"] = [result.miou for result in of_method]
        baseline = comparison.baselines.get(method, BASELINE)
        row["gain"], row["gain_sd"] = spread([] if method == baseline else _gaps(runs, method, baseline))
        row["gap_share"] = _gap_share(runs, method) if baseline == BASELINE != method else None
        row |= _against(comparison.reference, method, runs, resampled, groups)
        row["steps"] = max((result.steps for result in of_method), default=None)
        row["minutes"] = spread([result.seconds / 60 for result in of_method])[0]
        row["peak_mib"] = max((result.peak_mib for result in of_method if result.peak_mib is not None), default=None)
        if with_best:
            best = [result.best for result in of_method if result.best is not None]
            row[BEST], row[f"{BEST}_sd"] = spread([_score(matrices) for matrices in best])
        rows.append(row)
    return rows


def paired_interval(gaps: Sequence[float], resampled: np.ndarray, groups: int) -> tuple[list[float], float]:
    """The 95 % interval and two-sided p of a mean difference, over seeds and images.

    Its variance is the sum of two parts: the sample variance of the seeds' differences over their number S, and the
    variance over resampled images (bootstrap; Efron and Tibshirani 1993, chapter 6). Student's t, with the degrees of
    freedom of Welch and Satterthwaite, keeps the interval honest with few seeds. Of one seed the first part is unknown
    and left out: the interval is then one for that seed.

    Args:
        gaps: the difference of each seed, S of them.
        resampled: (S, draws), of each seed on resampled images; all seeds share a draw of images.
        groups: number of images or scenes.
    """
    mean, count = statistics.mean(gaps), len(gaps)
    between = statistics.variance(gaps) / count if count > 1 else 0.0
    within = float(resampled.mean(0).var())
    if (total := between + within) == 0:
        return [mean, mean], float(mean == 0)
    freedom = total**2 / (between**2 / max(count - 1, 1) + within**2 / (groups - 1))
    reach = float(student.ppf(0.975, freedom)) * math.sqrt(total)
    return [mean - reach, mean + reach], float(2 * student.sf(abs(mean) / math.sqrt(total), freedom))


def resampling_units(results: Sequence[Result]) -> tuple[str, list[str]]:
    """What is resampled, scenes where known, else images, and its name for each image; of paired results."""
    scenes = next((result.scenes for result in results if result.scenes), None)
    return ("scenes", scenes) if scenes else ("images", results[0].images if results else [])


def _resampled(runs: Runs) -> Resampled:
    """Each run on the same resamples of images, or of scenes where known; {} of one."""
    groups, place = np.unique(resampling_units([*runs.values()])[1], return_inverse=True)
    if len(groups) < 2:  # every resample is the same
        return {}
    summed = np.zeros((len(groups), len(runs), 2, 2), np.int64)
    np.add.at(summed, place, np.stack([result.matrices for result in runs.values()], 1))
    return dict(zip(runs, 100 * bootstrap(summed.swapaxes(0, 1), DRAWS), strict=True))


def _against(reference: str, method: str, runs: Runs, resampled: Resampled, groups: int) -> dict[str, Any]:
    """On the seeds that both have; nothing for the reference itself."""
    keys = ("difference", "difference_low", "difference_high", "p", "seeds_won", "wilcoxon_p")
    row: dict[str, Any] = dict.fromkeys(keys)
    gaps, seeds = _gaps(runs, method, reference), _shared(runs, method, reference)
    if method == reference or not seeds:
        return row
    row |= {"difference": spread(gaps)[0], "seeds_won": f"{sum(gap > 0 for gap in gaps)}/{len(gaps)}"}
    if resampled:
        draws = np.stack([resampled[method, seed] - resampled[reference, seed] for seed in seeds])
        (row["difference_low"], row["difference_high"]), row["p"] = paired_interval(gaps, draws, groups)
    error = np.mean([_errors(runs[method, seed]) - _errors(runs[reference, seed]) for seed in seeds], 0)
    row["wilcoxon_p"] = float(wilcoxon(error).pvalue) if error.any() else 1.0
    return row


def _errors(run: Result) -> np.ndarray:
    """The share of wrong pixels of each image, (images,) in [0, 1]."""
    return (run.matrices[:, 0, 1] + run.matrices[:, 1, 0]) / run.matrices.sum((1, 2))


def _gap_share(runs: Runs, method: str) -> float | None:
    seeds = _shared(runs, method, BASELINE, ORACLE)
    low, reached, high = (sum(runs[name, seed].miou for seed in seeds) for name in (BASELINE, method, ORACLE))
    return 100 * (reached - low) / (high - low) if high > low else None


def _gaps(runs: Runs, method: str, other: str) -> list[float]:
    return [runs[method, seed].miou - runs[other, seed].miou for seed in _shared(runs, method, other)]


def _shared(runs: Runs, *methods: str) -> list[int]:
    return sorted(set.intersection(*({seed for method, seed in runs if method == name} for name in methods)))


def _score(matrices: np.ndarray, path: tuple[str, ...] = ("miou",)) -> float:
    return 100 * float(score_at(scores(matrices.sum(0)), path))


def spread(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation; None where a value is missing or there are too few."""
    if not values or any(math.isnan(value) for value in values):
        return None, None
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None
