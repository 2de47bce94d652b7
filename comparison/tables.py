"""The tables of a comparison as Markdown, CSV and LaTeX, and its picture."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comparison.results import Comparison, paired
from comparison.statistics import BASELINE, BEST, DRAWS, MEASURES, ORACLE, resampling_units, table
from report.plots import new_figure, save_figure
from report.tables import FEW, csv_text, latex_tabular, markdown_table, number_text
from utils.files import write_text

NOT_IN_LATEX = {"seeds", "mIoU of each seed", "seeds won", "Wilcoxon p", "steps", "minutes", "peak MiB", BEST}
ESCAPES = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
)


def write(folder: Path, comparisons: Sequence[Comparison], above: str = "") -> None:
    """Write table.md, with `above` before its tables, .csv and .tex, results.json and plot_PAIR.png into `folder`."""
    numbers = {comparison.pair: _numbers(comparison) for comparison in comparisons}
    texts = {
        "table.md": "\n".join(filter(None, [above, *map(markdown, comparisons)])),
        "table.csv": csv_table(comparisons),
        "table.tex": "\n".join(latex(comparison) for comparison in comparisons),
        "results.json": json.dumps(numbers, indent=2, allow_nan=False) + "\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)
    for comparison in comparisons:
        draw(comparison, folder / f"plot_{comparison.pair}.png")


def markdown(comparison: Comparison) -> str:
    """The table, then protocol, choice of checkpoints, warnings and how it was tested, then published scores."""
    rows = table(comparison)
    cells = [_cells(row, comparison.reference) for row in rows]
    parts = [f"## {comparison.pair}", markdown_table([[*cells[0]], *([*line.values()] for line in cells)])]
    parts.append(f"Percent, mean ± sample standard deviation over seeds. Protocol: {comparison.protocol}.")
    rules: dict[str, list[str]] = {}
    for result in comparison.results:
        rules.setdefault(" ".join(result.selected.split()), []).append(result.method)
    for i, (rule, methods) in enumerate(sorted(rules.items(), key=lambda item: -len(item[1]))):
        whose = ", ".join(dict.fromkeys(methods)) if i else "all runs" if len(rules) == 1 else "all others"
        parts.append(f"Checkpoint: {rule} ({whose}).")
    parts += [f"WARNING: {text}" for text in _warnings(comparison, rows)]
    if any(row["difference"] is not None for row in rows):
        parts.append(_how_tested(comparison))
    if comparison.published:
        parts += ["### Published", _published_table(comparison, rows)]
    return "\n\n".join(parts) + "\n"


def _cells(row: dict[str, Any], reference: str) -> dict[str, str]:
    """Title -> text of one row of `table`."""
    done, missing = len(row["seeds"]), len(row["seeds_missing"])
    low, high = row["difference_low"], row["difference_high"]
    return {
        "method": row["method"],
        "seeds": "-" if not done else f"{done} of {done + missing}" if missing else str(done),
        **{title: number_text(row[key], sd=row[f"{key}_sd"]) for key, (title, _) in MEASURES.items()},
        "mIoU of each seed": ", ".join(f"{value:.1f}" for value in row["miou_of_each_seed"]) or "-",
        f"gain over {BASELINE}": number_text(row["gain"], "+.1f", row["gain_sd"]),
        f"gap to {ORACLE} closed": number_text(row["gap_share"], ".0f"),
        f"difference to {reference}": number_text(row["difference"], "+.1f"),
        "95 % interval": "-" if low is None else f"{low:+.1f} to {high:+.1f}",
        "p": number_text(row["p"], ".2g"),
        "seeds won": row["seeds_won"] or "-",
        "Wilcoxon p": number_text(row["wilcoxon_p"], ".2g"),
        "steps": number_text(row["steps"], "d"),
        "minutes": number_text(row["minutes"]),
        "peak MiB": number_text(row["peak_mib"], ".0f"),
        **({BEST: number_text(row[BEST], sd=row[f"{BEST}_sd"])} if BEST in row else {}),
    }


def _warnings(comparison: Comparison, rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is left out and missing, and what the runs warned of: each text once, with the runs that it is about."""
    warned: dict[str, dict[str, list[int]]] = {}
    for result in comparison.results:
        for text in result.warnings:
            warned.setdefault(" ".join(text.split()), {}).setdefault(result.method, []).append(result.seed)
    notes = []
    for text, methods in warned.items():
        notes.append(f"{'; '.join(f'{method}, {_seeds(seeds)}' for method, seeds in methods.items())}: {text}")
    notes += [f"left out: {reason}" for reason in comparison.left_out]
    for row in rows:
        if missing := row["seeds_missing"]:
            notes.append(f"{row['method']}: has no result" + f" of {_seeds(missing)}" * bool(row["seeds"]))
    return notes


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _how_tested(comparison: Comparison) -> str:
    unit, names = resampling_units(paired(comparison.results)[0])
    groups, seeds = len(set(names)), len({result.seed for result in comparison.results})
    parts = [
        f"Against {comparison.reference}: mean difference of mIoU over shared seeds. Interval and two-sided p are of "
        f"Student's t; the variance is that between {seeds} seed{'s' * (seeds > 1)} plus that over {groups} {unit}, "
        f"from {DRAWS} paired bootstrap resamples."
    ]
    if groups < FEW:
        parts.append(f"So few {unit} give an interval that is too narrow.")
    if seeds == 1:
        parts.append("One seed says nothing of the spread between seeds: interval and p are for this seed alone.")
    if comparison.baselines:
        named = ", ".join(f"{method} over {baseline}" for method, baseline in comparison.baselines.items())
        parts.append(f"Gains over another baseline: {named}.")
    parts.append(
        "The Wilcoxon signed-rank test is over images, of the difference of the share of wrong pixels, averaged over "
        "seeds; it takes images as independent and seeds as fixed. No p is corrected for the number of methods."
    )
    return " ".join(parts)


def _published_table(comparison: Comparison, rows: Sequence[dict[str, Any]]) -> str:
    ours = {row["method"]: number_text(row["miou"], sd=row["miou_sd"]) for row in rows}
    lines = [["method", "mIoU ours", "mIoU published", "IoU clear published", "IoU cloud published", "source"]]
    for entry in comparison.published:
        numbers = [number_text(value, ".2f") for value in (entry.miou, entry.iou_clear, entry.iou_cloud)]
        lines.append([entry.method, ours.get(entry.method, "-"), *numbers, entry.source])
    return markdown_table(lines)


def csv_table(comparisons: Sequence[Comparison]) -> str:
    """The numbers of `table`, one line per pair and method; nothing where there is none, lists with spaces between."""
    rows = [{"pair": comparison.pair, **row} for comparison in comparisons for row in table(comparison)]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return csv_text([keys, *([_plain(row.get(key)) for key in keys] for row in rows)])


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(str(_plain(part)) for part in value)
    return f"{value:.6g}" if isinstance(value, float) else value


def latex(comparison: Comparison) -> str:
    """A tabular of the scores and the comparison with the reference; the best mIoU is bold, the oracle left aside."""
    rows = table(comparison)
    scores = {row["method"]: row["miou"] for row in rows if row["miou"] is not None and row["method"] != ORACLE}
    cells = [_cells(row, comparison.reference) for row in rows]
    titles = [title for title in cells[0] if title not in NOT_IN_LATEX]
    lines = [[title.translate(ESCAPES) for title in titles]]
    for row, texts in zip(rows, cells, strict=True):
        line = {title: texts[title].translate(ESCAPES) for title in titles}
        if row["method"] in scores and row["miou"] == max(scores.values()):
            line["mIoU"] = f"\\textbf{{{line['mIoU']}}}"
        lines.append([*line.values()])
    return latex_tabular(lines, " ".join(f"{comparison.pair}: {comparison.protocol}".split()))


def _numbers(comparison: Comparison) -> dict[str, Any]:
    """What results.json holds of a pair: the table, and each run's pooled confusion matrix and cost."""
    keys = ("method", "seed", "steps", "seconds", "peak_mib", "selected", "repeatability", "warnings")
    return {
        "protocol": comparison.protocol,
        "reference": comparison.reference,
        "table": table(comparison),
        "runs": [
            {**{key: getattr(result, key) for key in keys}, "confusion": result.matrices.sum(0).tolist()}
            for result in comparison.results
        ],
        "published": [entry._asdict() for entry in comparison.published],
    }


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
