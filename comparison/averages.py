"""What a comparison says over several pairs of domains: the mean gain of each method, and where it gains least."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr

from comparison.table import BASELINE, ORACLE, Comparison, table
from report.tables import markdown_table


def averages(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """One row of numbers per method over all pairs in which it and source_only have results, in percent.

    `miou` maps each pair to the mean over seeds; `gain` and `gain_sd` are mean and sample standard deviation over pairs
    of the gain in `comparison.table`, `lowest` is the smallest of them and `lowest_pair` its pair. `gap_share` is the
    mean gain over that of the oracle, on the pairs with a gap: a mean of ratios would be ruled by the smallest one.
    """
    tables = {comparison.pair: {row["method"]: row for row in table(comparison)} for comparison in comparisons}
    rows = []
    for method in dict.fromkeys(method for found in tables.values() for method in found):
        mine = {pair: found[method] for pair, found in tables.items() if method in found}
        scores = {pair: row["miou"] for pair, row in mine.items() if row["miou"] is not None}
        gains = {pair: row["gain"] for pair, row in mine.items() if row["gain"] is not None}
        row: dict[str, Any] = {"method": method, "miou": scores, "pairs": len(gains), "gain": None, "gain_sd": None}
        row |= {"lowest": None, "lowest_pair": None, "gap_share": None}
        if gains:
            row["gain"] = statistics.mean(gains.values())
            row["gain_sd"] = statistics.stdev(gains.values()) if len(gains) > 1 else None
            row["lowest_pair"] = min(gains, key=lambda pair: gains[pair])
            row["lowest"] = gains[row["lowest_pair"]]
            gaps = {pair: tables[pair][ORACLE]["gain"] for pair in gains if mine[pair]["gap_share"] is not None}
            if gaps:
                row["gap_share"] = 100 * sum(gains[pair] for pair in gaps) / sum(gaps.values())
        rows.append(row)
    return rows


def markdown(title: str, comparisons: Sequence[Comparison]) -> str:
    """The table as text; `title` names the group of pairs."""
    pairs = [comparison.pair for comparison in comparisons]
    head = ["method", "pairs", "mean gain", "lowest gain", f"gap to {ORACLE} closed", *pairs]
    lines = [head]
    for row in averages(comparisons):
        gain = "-" if row["gain"] is None else f"{row['gain']:+.1f}"
        lowest = "-" if row["lowest"] is None else f"{row['lowest']:+.1f} ({row['lowest_pair']})"
        lines.append(
            [
                row["method"],
                f"{len(row['miou'])} of {len(pairs)}",
                gain + ("" if row["gain_sd"] is None else f" ± {row['gain_sd']:.1f}"),
                lowest,
                "-" if row["gap_share"] is None else f"{row['gap_share']:.0f}",
                *(f"{row['miou'][pair]:.1f}" if pair in row["miou"] else "-" for pair in pairs),
            ]
        )
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
    return "\n".join([*tables, *([f"{foretelling(comparisons)}\n"] if tables else [])])


def gains(comparisons: Sequence[Comparison]) -> np.ndarray:
    """Change of repeatability and of mIoU (N, 2), in percent, from source_only, or what a method has in its place, to
    each other run of its pair and seed; without the oracle, and without runs that have no repeatability."""
    found = []
    for comparison in comparisons:
        runs = {(of.method, of.seed): of for of in comparison.results if of.repeatability is not None}
        starts = {BASELINE, ORACLE, *comparison.baselines.values()}
        for (method, seed), run in runs.items():
            before = runs.get((comparison.baselines.get(method, BASELINE), seed))
            if method not in starts and before is not None:
                foretold = 100 * (run.repeatability - before.repeatability)  # type: ignore[operator]
                found.append([foretold, run.miou - before.miou])
    return np.array(found).reshape(-1, 2)


def foretelling(comparisons: Sequence[Comparison]) -> str:
    """What repeatability, which needs no labels, would have told of the gain of each run."""
    foretold, true = gains(comparisons).T
    if len(true) < 3 or not np.ptp(foretold) or not np.ptp(true):
        return "Repeatability: too few runs to say what it is worth."
    harmed, warned = true < 0, foretold < 0
    return (
        f"Repeatability (report/repeatability.py), which needs no labels: over {len(true)} runs its change from "
        f"{BASELINE} has a correlation of {pearsonr(foretold, true).statistic:+.2f} with the gain in mIoU, of their "
        f"ranks {spearmanr(foretold, true).statistic:+.2f}. It falls in {int((harmed & warned).sum())} of the "
        f"{int(harmed.sum())} runs that lost, and in {int((~harmed & warned).sum())} of the {int((~harmed).sum())} "
        "that did not."
    )
