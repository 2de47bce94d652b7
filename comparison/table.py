"""Many runs (methods x seeds) of one pair of domains as a table with paired tests, and as a picture."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student
from scipy.stats import wilcoxon

from config.load import read_mapping
from report.metrics import bootstrap, score_at, scores
from report.plots import new_figure, save_figure
from report.tables import FEW, markdown_table
from utils.errors import ConfigError, DataError
from utils.files import write_text

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
NOT_IN_LATEX = {"seeds", "mIoU of each seed", "seeds won", "Wilcoxon p", "steps", "minutes", "peak MiB", BEST}
ESCAPES = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
)


class Result(NamedTuple):
    """What one run of one method on one pair of domains gave on the target."""

    method: str
    seed: int
    images: list[str]  # the same names for all results of a pair, in any order
    scenes: list[str] | None  # the scene of each image, where known
    matrices: np.ndarray  # (images, 2, 2) int64, rows true, columns predicted, at the checkpoint `selected`
    steps: int  # optimiser steps of all stages
    seconds: float  # training time of all stages
    peak_mib: float | None
    warnings: list[str]
    selected: str  # "last", or the rule by which the checkpoint was chosen
    best_matrices: np.ndarray | None  # as `matrices`, at the checkpoint that is best on the target's labels
    repeatability: float | None = None  # of the masks on the target, see report/repeatability.py; needs no labels

    @property
    def miou(self) -> float:
        """On all images together, in percent."""
        return _score(self.matrices)


class Published(NamedTuple):
    """One row of a published table, in percent."""

    method: str
    miou: float
    iou_clear: float | None
    iou_cloud: float | None
    source: str


class Comparison(NamedTuple):
    """All runs on one pair of domains."""

    pair: str
    protocol: str
    results: Sequence[Result]
    reference: str = "asda"
    published: Sequence[Published] = ()
    methods: Sequence[str] = ()  # the order of the rows, failed methods too; others that have results follow
    seeds: Sequence[int] = ()  # those that were asked for
    baselines: Mapping[str, str] = {}  # the row over which a method gains, where it is not source_only


def table(comparison: Comparison) -> list[dict[str, Any]]:
    """One row of numbers per method, in percent where they are scores; None stands where there is nothing to say.

    KEY and KEY_sd are mean and sample standard deviation over the method's seeds, KEY of `MEASURES`, and so is `BEST`,
    the mIoU at the checkpoint that is best on the labels. `gain` is the mean over shared seeds of the difference to
    source_only, `gap_share` = (method - source_only) / (oracle - source_only) of the means over the seeds all three
    share. `difference` and what follows it compare with the reference on shared seeds: see `paired_interval`; the
    Wilcoxon test is over images, of the difference of the share of wrong pixels, averaged over seeds.

    Raises:
        DataError: a method has two results of one seed, or the results are not of the same images and labels.
    """
    runs = _aligned(comparison.results)
    miou = {method: {seed: of.miou for seed, of in seeds.items()} for method, seeds in runs.items()}
    resampled = _resampled(runs)
    groups = len(set(_units([of for seeds in runs.values() for of in seeds.values()])[1]))
    seeds = {*comparison.seeds, *(result.seed for result in comparison.results)}
    with_best = any(result.best_matrices is not None for result in comparison.results)
    rows = []
    for method in dict.fromkeys([*comparison.methods, *runs]):
        mine = runs.get(method, {})
        row: dict[str, Any] = {"method": method, "seeds": [*mine], "seeds_missing": sorted(seeds - mine.keys())}
        for key, (_, path) in MEASURES.items():
            row[key], row[f"{key}_sd"] = _spread([_score(of.matrices, path) for of in mine.values()])
        row["miou_of_each_seed"] = [*miou.get(method, {}).values()]
        row["gain"], row["gain_sd"], row["gap_share"] = None, None, None
        baseline = comparison.baselines.get(method, BASELINE)
        if method != baseline:
            if shared := _shared(miou, method, baseline):
                row["gain"], row["gain_sd"] = _spread([miou[method][seed] - miou[baseline][seed] for seed in shared])
            if baseline == BASELINE:
                row["gap_share"] = _gap_share(miou, method)
        row |= _against(comparison.reference, method, runs, miou, resampled, groups)
        row["steps"] = max((of.steps for of in mine.values()), default=None)
        row["minutes"] = _spread([of.seconds / 60 for of in mine.values()])[0]
        row["peak_mib"] = max((of.peak_mib for of in mine.values() if of.peak_mib is not None), default=None)
        if with_best:
            best = [of.best_matrices for of in mine.values() if of.best_matrices is not None]
            row[BEST], row[f"{BEST}_sd"] = _spread([_score(matrices) for matrices in best])
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

    Returns:
        The interval, in the unit of the differences, and p.
    """
    mean, count = statistics.mean(gaps), len(gaps)
    between = statistics.variance(gaps) / count if count > 1 else 0.0
    within = float(resampled.mean(0).var())
    if (total := between + within) == 0:
        return [mean, mean], float(mean == 0)
    freedom = total**2 / (between**2 / max(count - 1, 1) + within**2 / (groups - 1))
    reach = float(student.ppf(0.975, freedom)) * math.sqrt(total)
    return [mean - reach, mean + reach], float(2 * student.sf(abs(mean) / math.sqrt(total), freedom))


def _aligned(results: Sequence[Result]) -> dict[str, dict[int, Result]]:
    """The results by method and seed, each with its images of a known label, sorted by name: folds mix their order."""
    runs: dict[str, dict[int, Result]] = {}
    for result in sorted(results, key=lambda result: result.seed):
        order = [int(i) for i in np.argsort(result.images, kind="stable") if result.matrices[i].any()]
        aligned = result._replace(
            images=[result.images[i] for i in order],
            scenes=result.scenes and [result.scenes[i] for i in order],
            matrices=result.matrices[order],
        )
        first = next((one for seeds in runs.values() for one in seeds.values()), aligned)
        what = f"{result.method}, seed {result.seed}"
        if not order:
            raise DataError(f"{what}: no image has a label with a known pixel, so there is nothing to compare")
        if result.seed in runs.setdefault(result.method, {}):
            raise DataError(f"{what}: there are two results, expected one")
        if aligned.images != first.images:
            raise DataError(f"{what}: scored on other images than {first.method}; paired tests need the same ones")
        if (aligned.matrices.sum(2) != first.matrices.sum(2)).any():
            raise DataError(f"{what}: scored against other labels than {first.method}; paired tests need the same ones")
        runs[result.method][result.seed] = aligned
    return runs


def _resampled(runs: dict[str, dict[int, Result]]) -> dict[tuple[str, int], np.ndarray]:
    """mIoU in percent, (DRAWS,) of each run on the same resamples of images, or of scenes where known; {} of one."""
    flat = {(method, seed): of for method, seeds in runs.items() for seed, of in seeds.items()}
    _, names = _units([*flat.values()])
    groups, place = np.unique(names, return_inverse=True)
    if len(groups) < 2:  # every resample is the same
        return {}
    summed = np.zeros((len(groups), len(flat), 2, 2), np.int64)
    np.add.at(summed, place, np.stack([of.matrices for of in flat.values()], 1))
    return dict(zip(flat, 100 * bootstrap(summed.swapaxes(0, 1), DRAWS), strict=True))


def _units(results: Sequence[Result]) -> tuple[str, list[str]]:
    """What is resampled, scenes where known, else images, and its name for each image; of aligned results."""
    for result in results:
        if result.scenes:
            return "scenes", result.scenes
    return "images", results[0].images if results else []


def _against(
    reference: str,
    method: str,
    runs: dict[str, dict[int, Result]],
    miou: dict[str, dict[int, float]],
    resampled: dict[tuple[str, int], np.ndarray],
    groups: int,
) -> dict[str, Any]:
    """The comparison with the reference on the seeds that both have; nothing for the reference itself."""
    keys = ("difference", "difference_low", "difference_high", "p", "seeds_won", "wilcoxon_p")
    row: dict[str, Any] = dict.fromkeys(keys)
    shared = _shared(miou, method, reference)
    if method == reference or not shared:
        return row
    gaps = [miou[method][seed] - miou[reference][seed] for seed in shared]
    row["difference"] = _spread(gaps)[0]
    row["seeds_won"] = f"{sum(gap > 0 for gap in gaps)}/{len(gaps)}"
    if resampled:
        draws = np.stack([resampled[method, seed] - resampled[reference, seed] for seed in shared])
        (row["difference_low"], row["difference_high"]), row["p"] = paired_interval(gaps, draws, groups)
    errors = [_errors(runs[method][seed].matrices) - _errors(runs[reference][seed].matrices) for seed in shared]
    error = np.mean(errors, 0)
    row["wilcoxon_p"] = float(wilcoxon(error).pvalue) if error.any() else 1.0
    return row


def _errors(matrices: np.ndarray) -> np.ndarray:
    """The share of wrong pixels of each image, (images,) in [0, 1], from matrices (images, 2, 2)."""
    return (matrices[:, 0, 1] + matrices[:, 1, 0]) / matrices.sum((1, 2))


def _gap_share(miou: dict[str, dict[int, float]], method: str) -> float | None:
    shared = _shared(miou, method, BASELINE, ORACLE)
    low, found, high = (sum(miou[name][seed] for seed in shared) for name in (BASELINE, method, ORACLE))
    return 100 * (found - low) / (high - low) if high > low else None


def _shared(miou: dict[str, dict[int, float]], *methods: str) -> list[int]:
    return sorted(set.intersection(*(set(miou.get(method, {})) for method in methods)))


def _score(matrices: np.ndarray, path: tuple[str, ...] = ("miou",)) -> float:
    return 100 * float(score_at(scores(matrices.sum(0)), path))


def _spread(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation; None where a value is missing or there are too few."""
    if not values or any(math.isnan(value) for value in values):
        return None, None
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


# Writing


def write(folder: Path, comparisons: Sequence[Comparison], above: str = "") -> None:
    """Write table.md, .csv and .tex, results.json and plot_PAIR.png into `folder`; it is made if need be.

    Args:
        above: text to stand before the tables of table.md.

    Raises:
        DataError: a file cannot be written.
    """
    numbers = {comparison.pair: _numbers(comparison) for comparison in comparisons}
    texts = {
        "table.md": "\n".join([*filter(None, [above]), *map(markdown, comparisons)]),
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
    found, missing = len(row["seeds"]), len(row["seeds_missing"])
    low, high = row["difference_low"], row["difference_high"]
    each = ", ".join(f"{value:.1f}" for value in row["miou_of_each_seed"])
    return {
        "method": row["method"],
        "seeds": "-" if not found else f"{found} of {found + missing}" if missing else str(found),
        **{title: _text(row[key], sd=row[f"{key}_sd"]) for key, (title, _) in MEASURES.items()},
        "mIoU of each seed": each or "-",
        f"gain over {BASELINE}": _text(row["gain"], "+.1f", row["gain_sd"]),
        f"gap to {ORACLE} closed": _text(row["gap_share"], ".0f"),
        f"difference to {reference}": _text(row["difference"], "+.1f"),
        "95 % interval": "-" if low is None else f"{low:+.1f} to {high:+.1f}",
        "p": _text(row["p"], ".2g"),
        "seeds won": row["seeds_won"] or "-",
        "Wilcoxon p": _text(row["wilcoxon_p"], ".2g"),
        "steps": _text(row["steps"], "d"),
        "minutes": _text(row["minutes"]),
        "peak MiB": _text(row["peak_mib"], ".0f"),
        **({BEST: _text(row[BEST], sd=row[f"{BEST}_sd"])} if BEST in row else {}),
    }


def _text(value: float | None, form: str = ".1f", sd: float | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:{form}}" + ("" if sd is None else f" ± {sd:.1f}")


def _who(notes: Iterable[tuple[str, Result]]) -> list[tuple[str, str]]:
    """Each text once, with the methods and seeds that it is about."""
    found: dict[str, dict[str, list[int]]] = {}
    for text, result in notes:
        found.setdefault(" ".join(text.split()), {}).setdefault(result.method, []).append(result.seed)
    return [
        (text, "; ".join(f"{method}, {_seeds(seeds)}" for method, seeds in methods.items()))
        for text, methods in found.items()
    ]


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _warnings(comparison: Comparison, rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the runs warned of, and what is missing."""
    told = _who((text, result) for result in comparison.results for text in result.warnings)
    notes = [f"{who}: {text}" for text, who in told]
    for row in rows:
        if not row["seeds"]:
            notes.append(f"{row['method']}: has no result")
        elif row["seeds_missing"]:
            notes.append(f"{row['method']}: has no result of {_seeds(row['seeds_missing'])}")
    return notes


def _how_tested(comparison: Comparison) -> str:
    runs = _aligned(comparison.results)
    unit, names = _units([of for seeds in runs.values() for of in seeds.values()])
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
    ours = {row["method"]: _text(row["miou"], sd=row["miou_sd"]) for row in rows}
    lines = [["method", "mIoU ours", "mIoU published", "IoU clear published", "IoU cloud published", "source"]]
    for entry in comparison.published:
        numbers = [_text(value, ".2f") for value in (entry.miou, entry.iou_clear, entry.iou_cloud)]
        lines.append([entry.method, ours.get(entry.method, "-"), *numbers, entry.source])
    return markdown_table(lines)


def csv_table(comparisons: Sequence[Comparison]) -> str:
    """The numbers of `table`, one line per pair and method; nothing where there is none, lists with spaces between."""
    rows = [{"pair": comparison.pair, **row} for comparison in comparisons for row in table(comparison)]
    lines = io.StringIO()
    writer = csv.DictWriter(lines, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _plain(value) for key, value in row.items()})
    return lines.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(str(_plain(part)) for part in value)
    return f"{value:.6g}" if isinstance(value, float) else value


def latex(comparison: Comparison) -> str:
    """A tabular of the scores and the comparison with the reference; the best mIoU is bold, the oracle left aside."""
    rows = table(comparison)
    best = max((row["miou"] for row in rows if row["miou"] is not None and row["method"] != ORACLE), default=None)
    cells = [_cells(row, comparison.reference) for row in rows]
    titles = [title for title in cells[0] if title not in NOT_IN_LATEX]
    lines = [" & ".join(map(_escaped, titles))]
    for row, texts in zip(rows, cells, strict=True):
        line = {title: _escaped(texts[title]) for title in titles}
        if row["method"] != ORACLE and row["miou"] is not None and row["miou"] == best:
            line["mIoU"] = f"\\textbf{{{line['mIoU']}}}"
        lines.append(" & ".join(line.values()))
    note = " ".join(f"% {comparison.pair}: {comparison.protocol}".split())
    body = " \\\\\n".join(lines)
    return f"{note}\n\\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}\n{body} \\\\\n\\end{{tabular}}\n"


def _escaped(text: str) -> str:
    return text.translate(ESCAPES)


def _numbers(comparison: Comparison) -> dict[str, Any]:
    """What results.json holds of a pair: the table, and each run's pooled confusion matrix and cost."""
    runs = [
        {
            **{
                key: getattr(result, key)
                for key in ("method", "seed", "steps", "seconds", "peak_mib", "selected", "repeatability")
            },
            "warnings": result.warnings,
            "confusion": result.matrices.sum(0).tolist(),
        }
        for result in comparison.results
    ]
    return {
        "protocol": comparison.protocol,
        "reference": comparison.reference,
        "table": table(comparison),
        "runs": runs,
        "published": [entry._asdict() for entry in comparison.published],
    }


def draw(comparison: Comparison, path: Path) -> None:
    """Draw each method's mean mIoU and its seeds as a PNG, with dashed lines at source_only and oracle."""
    rows = table(comparison)
    figure = new_figure(5.2, 0.7 + 0.27 * len(rows))
    axis = figure.subplots()
    for place, row in enumerate(rows):
        colour = "#1b7837" if row["method"] == comparison.reference else "0.35"
        text = "no result" if row["miou"] is None else _text(row["miou"], sd=row["miou_sd"])
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


# Published scores


def read_published(path: Path, pair: str) -> list[Published]:
    """The published scores of a pair; none if the file does not name it.

    Args:
        path: YAML, pair -> rows of method, miou, iou_clear and iou_cloud (may be left out) and source.

    Raises:
        ConfigError: the file cannot be read, or a row holds something else.
    """
    rows = read_mapping(path, "a YAML file", "a mapping of pairs to rows").get(pair, [])
    if not isinstance(rows, list):
        raise ConfigError(f"{path}: {pair} is {type(rows).__name__}, expected a list of rows")
    return [_published(row, f"{path}: {pair}[{i}]") for i, row in enumerate(rows)]


def _published(row: Any, place: str) -> Published:
    if not isinstance(row, dict):
        raise ConfigError(f"{place} is {type(row).__name__}, expected a mapping with the keys {_listed()}")
    if unknown := [key for key in row if key not in Published._fields]:
        raise ConfigError(f"{place}.{unknown[0]}: unknown key; known are {_listed()}")
    fields: dict[str, Any] = dict.fromkeys(Published._fields) | row
    entry = Published(**fields)
    for key, value in entry._asdict().items():
        if key in ("method", "source"):
            if not isinstance(value, str) or not value:
                raise ConfigError(f"{place}.{key}: found {value!r}, expected a text")
        elif value is None and key != "miou":
            continue
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
            raise ConfigError(f"{place}.{key}: found {value!r}, expected a percentage from 0 to 100")
    return entry


def _listed() -> str:
    return ", ".join(Published._fields)
