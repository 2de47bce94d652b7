"""The picture of a comparison."""

from pathlib import Path

from comparison.results import Comparison
from comparison.statistics import BASELINE, ORACLE, table
from report.plots import new_figure, save_figure
from report.tables import number_text


def draw(comparison: Comparison, path: Path) -> None:
    """Draw each method's mean mIoU and its seeds as a PNG, with dashed lines at source_only and oracle."""
    rows = table(comparison)
    figure = new_figure(5.2, 0.7 + 0.27 * len(rows))
    axis = figure.subplots()
    for place, row in enumerate(rows):
        colour = "#1b7837" if row["method"] == comparison.reference else "0.35"
        text = "no result" if row["miou"] is None else number_text(row["miou"], sd=row["miou_sd"])
        axis.annotate(text, (1.02, place), xycoords=("axes fraction", "data"), fontsize=7, va="center", color=colour)
        if row["miou"] is None:
            continue
        seeds = row["miou_of_each_seed"]
        axis.plot([min(seeds), max(seeds)], [place] * 2, color=colour, linewidth=1, zorder=2)
        axis.plot(row["miou"], place, "|", color=colour, markersize=13, markeredgewidth=2.2, zorder=3)
        axis.scatter(seeds, [place] * len(seeds), s=15, facecolor="white", edgecolor=colour, linewidth=0.9, zorder=4)
        if row["method"] in (BASELINE, ORACLE):
            axis.axvline(row["miou"], color="0.6", linewidth=0.8, linestyle="--", zorder=1)
    axis.set_yticks(range(len(rows)), [row["method"] for row in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.margins(x=0.08)
    axis.set_xlabel("mIoU on the target, %: mean (bar) and seeds (circles)", fontsize=7)
    axis.set_title(comparison.pair, fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
    axis.grid(axis="x", color="0.92", zorder=0)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path, dpi=200)
