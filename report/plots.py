"""Figures drawn with matplotlib: pictures side by side, histograms of entropy, embeddings, curves of a training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.decoded import Decoded
from datasets.files import Item
from engine.pictures import colour_entropy
from utils.files import whole
from utils.labels import IGNORE


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, the first and the last among them."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)]


def whole_label(decoded: Decoded) -> np.ndarray:
    """The label (H, W) uint8 of a whole image file, 255 where there is none."""
    label = np.full(decoded.valid.shape, IGNORE, np.uint8) if decoded.label is None else decoded.label
    return decoded.placed(label, IGNORE)


def picture_grid(
    path: Path,
    names: Sequence[str],
    columns: Mapping[str, Sequence[np.ndarray]],
    caption: str = "",
    *,
    key: Sequence[tuple[str, tuple[int, int, int]]] = (),
    entropy_bar: bool = False,
) -> None:
    """Draw pictures side by side as a PNG for a paper.

    Args:
        names, columns: one name per row; title -> one picture (H, W, 3) uint8 per row.
        key: (text, RGB colour) for a legend below.
        entropy_bar: draw the colour bar of `colour_entropy`.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    side = 1.55
    figure = new_figure(side * len(columns) + 0.6 * entropy_bar, side * len(names) + 0.45 + 0.3 * bool(key))
    axes = figure.subplots(len(names), len(columns), squeeze=False)
    for column, (title, pictures) in zip(axes.T, columns.items(), strict=True):
        column[0].set_title(title, fontsize=8)
        for axis, picture in zip(column, pictures, strict=True):
            axis.imshow(picture)
            axis.set(xticks=[], yticks=[])
    for axis, name in zip(axes[:, 0], names, strict=True):
        axis.set_ylabel(name if len(name) <= 24 else f"{name[:8]}…{name[-15:]}", fontsize=6)
    if caption:
        (figure.suptitle if key else figure.supxlabel)(caption, fontsize=7)  # a legend takes the place below
    if entropy_bar:
        colours = ListedColormap(colour_entropy(np.linspace(0, 1, 256)) / 255)
        shrink = min(1.0, 4 / len(names))
        bar = figure.colorbar(ScalarMappable(cmap=colours), ax=axes, fraction=0.05, shrink=shrink, pad=0.02)
        bar.set_label("normalised entropy: 0 reliable, 1 unreliable", fontsize=7)
        bar.ax.tick_params(labelsize=6)
    if key:
        patches = [Patch(facecolor="#{:02x}{:02x}{:02x}".format(*of), edgecolor="0.6", label=text) for text, of in key]
        figure.legend(handles=patches, loc="outside lower center", ncols=len(key), fontsize=7, frameon=False)
    save_figure(figure, path)


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure of `width` x `height` inches that needs no display and no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def save_figure(figure: Any, path: Path, **options: Any) -> None:
    """Write a matplotlib figure as PNG; the file is whole or not there."""
    with whole(path) as temporary:
        figure.savefig(temporary, format="png", **options)


def entropy_histograms(path: Path, values: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Distributions of pixels' normalised entropy in [0, 1], model -> {"easy": pixels, "hard": pixels}: one panel per
    model, one line per split."""
    figure = new_figure(2.6 * len(values), 2.3)
    axes = figure.subplots(1, len(values), squeeze=False, sharey=True)[0]
    for panel, (model, splits) in zip(axes, values.items(), strict=True):
        for (name, pixels), colour in zip(splits.items(), ("#1b7837", "#b2182b"), strict=True):
            weights = np.full(pixels.size, 100 / max(1, pixels.size))
            label = f"{name}, mean {pixels.mean():.3f}"
            panel.hist(pixels, bins=25, range=(0, 1), weights=weights, histtype="step", color=colour, label=label)
        panel.set_yscale("log")
        panel.set_title(model, fontsize=8)
        panel.set_xlabel("normalised entropy", fontsize=7)
        panel.tick_params(labelsize=6)
        panel.legend(fontsize=6)
    axes[0].set_ylabel("% of pixels", fontsize=7)
    save_figure(figure, path)


EMBEDDED = (  # (is source, is cloud) -> name and colour
    ((True, False), "source clear", "#a6cee3"),
    ((True, True), "source cloud", "#1f78b4"),
    ((False, False), "target clear", "#fdbf6f"),
    ((False, True), "target cloud", "#e31a1c"),
)


def embedding_panels(
    path: Path, panels: Mapping[str, Any], source: np.ndarray, cloud: np.ndarray, *, silhouettes: bool = True
) -> None:
    """The t-SNE of every model, a `report.embedding.Panel`, side by side, with its silhouette where `silhouettes`;
    `source` and `cloud`, (N,) bool, are domain and class of each point."""
    figure = new_figure(2.9 * len(panels), 3.4)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (model, panel) in zip(axes, panels.items(), strict=True):
        for (is_source, is_cloud), name, colour in EMBEDDED:
            chosen = (source == is_source) & (cloud == is_cloud)
            axis.scatter(*panel.points[chosen].T, s=3, c=colour, linewidths=0, label=name)
        axis.set(xticks=[], yticks=[])
        axis.set_title(model, fontsize=8)
        probe = "not possible, one image" if np.isnan(panel.probe) else f"{panel.probe:.0%}"
        silhouette = f", silhouette {panel.silhouette:.2f}" if silhouettes else ""
        axis.set_xlabel(f"domain probe {probe}{silhouette}", fontsize=7)
    shown = axes[0].get_legend_handles_labels()
    figure.legend(*shown, loc="outside lower center", ncols=4, fontsize=7, markerscale=3, frameon=False)
    save_figure(figure, path)


CURVES = {"raw/": "losses (unweighted)", "stats/": "shares", "lr": "learning rate"}  # by the start of a row's keys


def training_curves(path: Path, stages: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Losses, shares (entropies, accepted pseudo-labels) and learning rates by step, a row of panels for each stage's
    rows of metrics.jsonl."""
    figure = new_figure(8.6, 2.2 * len(stages))
    rows = figure.subplots(len(stages), 3, squeeze=False)
    for axes, (stage, log) in zip(rows, stages.items(), strict=True):
        steps = [row["step"] for row in log]
        for axis, (prefix, title) in zip(axes, CURVES.items(), strict=True):
            for key in (key for key in log[0] if key.startswith(prefix) and "contrast_" not in key):
                axis.plot(steps, [row[key] for row in log], label=key.removeprefix(prefix) or key, linewidth=0.9)
            axis.set_title(f"{stage}: {title}", fontsize=7)
            axis.tick_params(labelsize=6)
            if prefix != "lr":
                axis.legend(fontsize=4.5, ncols=2)
        axes[0].set_yscale("symlog", linthresh=1e-2)
        axes[0].set_xlabel("step", fontsize=6)
    save_figure(figure, path)
