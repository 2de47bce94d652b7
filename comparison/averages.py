"""What a comparison says over several pairs of domains: the mean gain of each method, and where it gains least."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr

from comparison.results import Comparison
from comparison.statistics import BASELINE, ORACLE, spread, table
from report.tables import markdown_table, number_text


def averages(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """One row of numbers per method over all pairs in which it and source_only have results, in percent.

    `miou` maps each pair to the mean over seeds; `gain` and `gain_sd` are mean and sample standard deviation over pairs
    of the gain in `comparison.statistics`, `lowest` is the smallest of them and `lowest_pair` its pair. `gap_share` is
    the mean gain over that of the oracle, on the pairs with a gap: a mean of ratios would be ruled by the smallest one.
    """
    tables = {comparison.pair: {row["method"]: row for row in table(comparison)} for comparison in comparisons}
    rows = []
    for method in dict.fromkeys(method for by_method in tables.values() for method in by_method):
        of_pair = {pair: by_method[method] for pair, by_method in tables.items() if method in by_method}
        scores = {pair: row["miou"] for pair, row in of_pair.items() if row["miou"] is not None}
        gains = {pair: row["gain"] for pair, row in of_pair.items() if row["gain"] is not None}
        gaps = {pair: tables[pair][ORACLE]["gain"] for pair in gains if of_pair[pair]["gap_share"] is not None}
        row: dict[str, Any] = {"method": method, "miou": scores, "pairs": len(gains)}
        row["gain"], row["gain_sd"] = spread([*gains.values()])
        row["lowest_pair"], row["lowest"] = min(gains.items(), key=lambda item: item[1], default=(None, None))
        row["gap_share"] = 100 * sum(gains[pair] for pair in gaps) / sum(gaps.values()) if gaps else None
        rows.append(row)
    return rows


def markdown(title: str, comparisons: Sequence[Comparison]) -> str:
    """The table as text; `title` names the group of pairs."""
    pairs = [comparison.pair for comparison in comparisons]
    lines = [["method", "pairs", "mean gain", "lowest gain", f"gap to {ORACLE} closed", *pairs]]
    for row in averages(comparisons):
        lowest = number_text(row["lowest"], "+.1f") + (f" ({row['lowest_pair']})" if row["lowest_pair"] else "")
        gain, share = number_text(row["gain"], "+.1f", row["gain_sd"]), number_text(row["gap_share"], ".0f")
        scores = (number_text(row["miou"].get(pair)) for pair in pairs)
        lines.append([row["method"], f"{len(row['miou'])} of {len(pairs)}", gain, lowest, share, *scores])
    note = (
        f"mIoU in percent, mean over seeds; gain over {BASELINE}, mean ± sample standard deviation over pairs. The "
        f"share of the gap is the mean gain over that of {ORACLE}."
    )
    return f"## {title}\n\n{markdown_table(lines)}\n\n{note}\n"


def grouped(comparisons: Sequence[Comparison], groups: Mapping[str, Sequence[str]]) -> str:
    """A table for each group of pairs, by its name; of all pairs where there is no group, and nothing for one pair."""
    by_name = {comparison.pair: comparison for comparison in comparisons}
    chosen = groups or ({"all pairs": list(by_name)} if len(by_name) > 1 else {})
    tables = [markdown(title, [by_name[pair] for pair in pairs]) for title, pairs in chosen.items()]
    return "\n".join([*tables, *([f"{repeatability_note(comparisons)}\n"] if tables else [])])


def changes(comparisons: Sequence[Comparison]) -> np.ndarray:
    """Change of repeatability and of mIoU (N, 2), in percent, from source_only, or what a method has in its place, to
    each other run of its pair and seed; without the oracle, and without runs that have no repeatability."""
    rows = []
    for comparison in comparisons:
        runs = {(run.method, run.seed): run for run in comparison.results if run.repeatability is not None}
        starts = {BASELINE, ORACLE, *comparison.baselines.values()}
        for (method, seed), run in runs.items():
            before = runs.get((comparison.baselines.get(method, BASELINE), seed))
            if method not in starts and before is not None:
                change = 100 * (run.repeatability - before.repeatability)  # type: ignore[operator]
                rows.append([change, run.miou - before.miou])
    return np.array(rows).reshape(-1, 2)


def repeatability_note(comparisons: Sequence[Comparison]) -> str:
    """What repeatability, which needs no labels, would have told of the gain of each run."""
    predicted, gains = changes(comparisons).T
    if len(gains) < 3 or not np.ptp(predicted) or not np.ptp(gains):
        return "Repeatability: too few runs to say what it is worth."
    harmed, warned = gains < 0, predicted < 0
    return (
        f"Repeatability (report/repeatability.py), which needs no labels: over {len(gains)} runs its change from "
        f"{BASELINE} has a correlation of {pearsonr(predicted, gains).statistic:+.2f} with the gain in mIoU, of their "
        f"ranks {spearmanr(predicted, gains).statistic:+.2f}. It falls in {int((harmed & warned).sum())} of the "
        f"{int(harmed.sum())} runs that lost, and in {int((~harmed & warned).sum())} of the {int((~harmed).sum())} "
        "that did not."
    )
