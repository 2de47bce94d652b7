"""Which stage of a finished run wins or loses what, by the labels of the target images that it was adapted to.

    python -m report.diagnosis runs/compare_shifts/hrc_to_biome/seed0/asda ...

For people who decide what to change, after training: nothing that trains reads this, or those labels.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from config.load import load_config
from config.schema import Config
from datasets.geometry import filled
from engine.build import trained
from engine.cli import run
from engine.domains import training_images
from engine.inference import HeadChoice, decided, mean_over_scales
from engine.layout import RANKING
from engine.pseudo_labels import read_pseudo_label
from losses.entropy import normalised_entropy
from nets.segmenter import Segmenter
from report.metrics import confusion_matrix, scores
from report.tables import markdown_table
from utils.errors import DataError
from utils.labels import IGNORE
from utils.output import progress_bar

LEVELS = 1000  # of entropy, in which pixels are counted


@dataclass
class Diagnosis:
    """Counts over all labelled pixels with data.

    Attributes:
        matrices: (2, 2) of teacher, stored masks and student, rows true, columns predicted; of the stored masks
            without the pixels that they leave open.
        pixels, stored: (LEVELS, 2), pixels by the teacher's entropy, where it, or the stored mask, is right and wrong.
        entropy, error: of each image, the teacher's mean entropy and its share of wrong pixels.
        changes: (2, 2), pixels by teacher right or wrong, student right or wrong.
    """

    matrices: dict[str, np.ndarray] = field(default_factory=dict)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros((LEVELS, 2), np.int64))
    stored: np.ndarray = field(default_factory=lambda: np.zeros((LEVELS, 2), np.int64))
    entropy: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    changes: np.ndarray = field(default_factory=lambda: np.zeros((2, 2), np.int64))

    def add(
        self, label: np.ndarray, entropy: np.ndarray, teacher: np.ndarray, masks: np.ndarray, student: np.ndarray
    ) -> None:
        """Count the pixels (N,) of one image: true class, the teacher's entropy in [0, 1], and three masks of classes;
        255 in the stored ones is open."""
        for name, mask in (("teacher", teacher), ("masks", masks), ("student", student)):
            seen = mask != IGNORE
            counts = confusion_matrix(label=label[seen], prediction=mask[seen])
            self.matrices[name] = self.matrices.get(name, 0) + counts
        level = np.minimum((entropy * LEVELS).astype(int), LEVELS - 1)
        wrong, kept = teacher != label, masks != IGNORE
        np.add.at(self.pixels, (level, wrong.astype(int)), 1)
        np.add.at(self.stored, (level[kept], (masks != label)[kept].astype(int)), 1)
        self.entropy.append(float(entropy.mean()))
        self.error.append(float(wrong.mean()))
        self.changes += confusion_matrix(label=wrong, prediction=student != label)

    @property
    def rank_correlation(self) -> float:
        """Spearman's, over images, of the teacher's entropy and error; NaN where one of them is constant."""
        constant = min(np.ptp(self.entropy), np.ptp(self.error)) == 0
        return float("nan") if constant else float(spearmanr(self.entropy, self.error).statistic)

    @property
    def auroc(self) -> float:
        """Probability that a wrong pixel of the teacher has more entropy than a right one, ties counted half."""
        right, wrong = (self.pixels / np.maximum(self.pixels.sum(0), 1)).T
        below = np.cumsum(right) - right
        return float((wrong * (below + right / 2)).sum()) if self.pixels.any(0).all() else float("nan")

    def accuracy_by_decile(self) -> list[float]:
        """Accuracy of the stored masks in each tenth of their pixels, by rising entropy; as near as levels allow."""
        total = self.stored.sum(1)
        place = (np.cumsum(total) - total / 2) / max(1, total.sum())  # the middle of each level, in [0, 1]
        tenth = np.minimum((10 * place).astype(int), 9)
        parts = [self.stored[tenth == number].sum(0) for number in range(10)]
        return [float(part[0] / part.sum()) if part.sum() else float("nan") for part in parts]


def diagnose(folder: Path) -> Diagnosis:
    """Compare the stages of one finished run with the labels; a DataError if it has no student or no stored masks, or
    its target lacks labels."""
    record, split = folder / "intra" / "config.yaml", folder / "split"
    if not record.is_file():
        raise DataError(f"{record}: does not exist; give the folder of a run whose stage 3 is finished")
    config = load_config(["--config", str(record), "--out", str(folder)])
    teacher, student = (trained(config, name) for name in (config.teacher.name, "student"))
    if not (split / RANKING).exists():
        raise DataError(f"{split / RANKING}: does not exist; this run has no stage 2 to judge")
    found = Diagnosis()
    images = training_images(config, "target", labels=True)
    for item in progress_bar(images, desc=str(folder), unit="image"):
        decoded = images.read(item)
        assert decoded.label is not None
        known = decoded.valid & (decoded.label != IGNORE)
        if not known.any():
            continue
        image = filled(decoded.image, decoded.valid)
        entropy, of_teacher = predict_image(teacher, image, config, config.split.scales, "main")
        masks = decoded.taken(read_pseudo_label(split, item.name))
        of_student = predict_image(student, image, config, [1.0], config.eval.head)[1]
        found.add(*(layer[known] for layer in (decoded.label, entropy, of_teacher, masks, of_student)))
    if not found.error:
        raise DataError(f"{config.target.root}: no label has a known pixel, so there is nothing to judge by")
    return found


def predict_image(
    network: Segmenter, image: np.ndarray, config: Config, scales: Sequence[float], head: HeadChoice
) -> tuple[np.ndarray, np.ndarray]:
    """Normalised entropy and class (H, W) of the mean over scales; of the teacher as stage 2 sees it."""
    probability = decided(mean_over_scales(network, image, config.data, scales), head)
    return normalised_entropy(probability[None])[0].numpy(), probability.argmax(0).numpy()


def report(runs: Sequence[Path]) -> str:
    """Two Markdown tables: scores stage by stage with what entropy tells, and accuracy by tenths of entropy."""
    scored = ["mIoU teacher", "mIoU masks", "mIoU student"]
    rows = [["run", *scored, "entropy and error, images", "AUROC, pixels", "mended", "spoilt"]]
    tenths = [["run", *(f"tenth {number}" for number in range(1, 11))]]
    for name, one in [(str(folder), diagnose(folder)) for folder in runs]:
        of_stages = [f"{100 * scores(matrix)['miou']:.1f}" for matrix in one.matrices.values()]
        (_, spoilt), (mended, _) = one.changes
        right, wrong = one.changes.sum(1)
        shares = [f"{100 * part / max(1, whole):.1f}" for part, whole in ((mended, wrong), (spoilt, right))]
        rows.append([name, *of_stages, f"{one.rank_correlation:+.2f}", f"{one.auroc:.2f}", *shares])
        tenths.append([name, *(f"{100 * value:.1f}" for value in one.accuracy_by_decile())])
    return (
        "On the target images that the run was adapted to, percent. mended: of the teacher's wrong pixels, those that "
        "the student has right; spoilt: of its right ones, those that the student has wrong.\n\n"
        f"{markdown_table(rows)}\n\n"
        "Accuracy of the stored masks by tenths of their pixels, from the teacher's lowest entropy to its highest:\n\n"
        f"{markdown_table(tenths)}\n"
    )


if __name__ == "__main__":
    if not sys.argv[1:] or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    run(lambda runs: print(report(runs)), [Path(folder) for folder in sys.argv[1:]])
