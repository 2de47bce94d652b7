"""Where a run fails, and whether others fail there too: its worst target images with the errors of several runs.

    python -m report.failures runs/compare_demo/demo/seed0/source_only runs/compare_demo/demo/seed0/asda failures.png

The images are those of which the last run named has the greatest share of pixels wrong, the worst first. For people who
judge finished runs: nothing that trains reads this, or the labels.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from config.load import load_config
from engine.build import trained
from engine.cli import run
from engine.domains import evaluation_images
from engine.inference import decide, probabilities
from engine.layout import best_model
from engine.pictures import ERROR_KEY, colour_errors, colour_mask, thinned, visible
from report.plots import picture_grid
from utils.errors import DataError
from utils.labels import IGNORE
from utils.output import progress_bar


class FinishedRun:
    """The last network of a run of bash.sh or compare.py, and the target's labelled evaluation images as it sees them,
    by name; a DataError where the folder holds no network."""

    def __init__(self, folder: Path) -> None:
        model = best_model(folder)
        self.config = load_config(["--config", str(folder / model.stage / "config.yaml"), "--out", str(folder)])
        self.network = trained(self.config, model.name)
        self.images = evaluation_images(self.config, "target")
        self.labelled = {item.name: item for item in self.images if item.label is not None}

    def errors(self, name: str) -> tuple[np.ndarray, np.ndarray, float]:
        """Label, mask (H, W) and share of wrong pixels among the known, NaN of none, of a labelled image."""
        decoded = self.images.read(self.labelled[name])
        assert decoded.label is not None
        probability = probabilities(self.network, decoded.image, self.config.data, decoded.valid)
        mask, known = decide(probability, self.config.eval.head).byte().numpy(), decoded.label != IGNORE
        share = float((mask != decoded.label)[known].mean()) if known.any() else math.nan
        return decoded.placed(decoded.label, IGNORE), decoded.placed(mask, IGNORE), share


def draw_failures(runs: Sequence[Path], picture: Path, count: int = 5) -> None:
    """Write a grid as PNG: image, label, and for each run where its mask is wrong, with its share over these images.

    A DataError if a run holds no network or has other evaluation images than the last one, none of them has a label, or
    `picture` exists or cannot be written.
    """
    if picture.exists():
        raise DataError(f"{picture}: exists and is left as it is; give another name, or remove it")
    judge = FinishedRun(runs[-1])
    shares = {name: judge.errors(name)[2] for name in progress_bar(judge.labelled, desc=str(runs[-1]), unit="image")}
    judged = [name for name, share in shares.items() if not math.isnan(share)]
    worst = sorted(judged, key=lambda name: (-shares[name], name))[:count]
    if not worst:
        raise DataError(f"{judge.config.target.root}: no evaluation image has a label, so there is nothing to judge by")
    columns = {"image": [visible(judge.images.read(judge.labelled[name])) for name in worst]}
    names_differ = len({folder.name for folder in runs}) == len(runs)
    titles = [folder.name if names_differ else str(folder) for folder in runs]
    for folder, title in zip(runs, titles, strict=True):
        one = judge if folder == runs[-1] else FinishedRun(folder)
        if one.labelled.keys() != judge.labelled.keys():
            raise DataError(f"{folder}: has other labelled evaluation images than {runs[-1]}; give runs on one target")
        labels, masks, wrong = zip(*map(one.errors, worst), strict=True)
        columns.setdefault("label", [thinned(colour_mask(label)) for label in labels])
        errors = [thinned(colour_errors(label, mask)) for label, mask in zip(labels, masks, strict=True)]
        columns[f"{title}: {100 * np.mean(wrong):.0f} %"] = errors
    caption = f"The {len(worst)} of {len(judged)} images on which {titles[-1]} is worst; percent of their pixels wrong"
    picture_grid(picture, worst, columns, caption, key=ERROR_KEY)


if __name__ == "__main__":
    if len(sys.argv) < 3 or not sys.argv[-1].endswith(".png") or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    run(lambda runs: draw_failures(runs, Path(sys.argv[-1])), [Path(folder) for folder in sys.argv[1:-1]])
