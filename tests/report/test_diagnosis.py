"""What is said of a run's stages, against counts by hand and scikit-learn, and on a run that was really trained."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from config.load import load_config
from engine.build import trained
from engine.domains import training_images
from engine.inference import probabilities
from engine.run import make_generated
from report.diagnosis import LEVELS, Diagnosis, diagnose, report
from split_entropy import split_entropy
from train_intra import train_intra
from train_teacher import train_teacher
from utils.errors import DataError
from utils.labels import IGNORE


def test_counts_by_hand() -> None:
    one = Diagnosis()
    label = np.array([1, 1, 0, 0, 0])
    one.add(
        label,
        entropy=np.array([0.1, 0.9, 0.2, 0.8, 1.0]),
        teacher=np.array([1, 0, 0, 1, 1]),
        masks=np.array([1, 1, 0, IGNORE, 1]),
        student=np.array([0, 1, 0, 0, 1]),
    )
    assert one.matrices["teacher"].tolist() == [[1, 2], [1, 1]]
    assert one.matrices["masks"].tolist() == [[1, 1], [0, 2]]
    assert one.matrices["student"].tolist() == [[2, 1], [1, 1]]
    assert one.changes.tolist() == [[1, 1], [2, 1]]  # of 2 right ones 1 is spoilt, of 3 wrong ones 2 are mended
    assert one.auroc == 1 and one.error == [0.6] and one.entropy == pytest.approx([0.6])
    assert one.pixels.sum() == 5 and one.stored.sum() == 4


def test_entropy_and_error_of_images() -> None:
    one = Diagnosis()
    for wrong, entropy in ((1, 0.2), (3, 0.3), (2, 0.25)):
        teacher = np.arange(4) < wrong
        one.add(np.zeros(4, int), np.full(4, entropy), teacher.astype(int), teacher.astype(int), teacher.astype(int))
    assert one.rank_correlation == pytest.approx(1)
    assert np.isnan(Diagnosis(entropy=[0.1, 0.2], error=[0.5, 0.5]).rank_correlation)


@pytest.mark.parametrize("seed", range(3))
def test_auroc_is_that_of_scikit_learn_and_deciles_those_of_a_sort(seed: int) -> None:
    rng = np.random.default_rng(seed)
    entropy = rng.integers(0, LEVELS, 5000) / LEVELS + 0.5 / LEVELS
    label = rng.integers(0, 2, 5000)
    guess = np.where(rng.random(5000) < 0.1 + 0.5 * entropy, 1 - label, label)
    one = Diagnosis()
    one.add(label, entropy, guess, guess, guess)
    assert one.auroc == pytest.approx(roc_auc_score(guess != label, entropy))
    right = (guess == label)[np.argsort(entropy, kind="stable")]
    wanted = [float(part.mean()) for part in np.array_split(right, 10)]
    assert one.accuracy_by_decile() == pytest.approx(wanted, abs=0.02)
    assert one.accuracy_by_decile()[0] > one.accuracy_by_decile()[-1]


def test_a_trained_run(tmp_path: Path, tiny_arguments: Callable[..., list[str]]) -> None:
    config = load_config(tiny_arguments(tmp_path, "--split.pseudo_label", "pixel_classifier"))
    make_generated(config)
    run = Path(config.out)
    with pytest.raises(DataError, match=r"intra/config\.yaml: does not exist; give the folder of a run"):
        diagnose(run)
    for stage in (train_teacher, split_entropy, train_intra):
        stage(config)
    one = diagnose(run)
    wanted = {name: np.zeros((2, 2), np.int64) for name in one.matrices}
    networks = {"teacher": trained(config, "teacher"), "student": trained(config, "student")}
    for item in training_images(config, "target", labels=False):
        label = cv2.imread(str(tmp_path / f"target/labels/{item.name}.png"), 0) == 255
        stored = cv2.imread(str(run / f"split/pseudo_labels/{item.name}.png"), 0)
        image = cv2.cvtColor(cv2.imread(str(item.image)), cv2.COLOR_BGR2RGB)
        masks = {name: probabilities(of, image, config.data)["main"].argmax(0) for name, of in networks.items()}
        masks["masks"] = torch.from_numpy(np.where(stored == 128, IGNORE, stored == 255))
        for name, mask in masks.items():
            for truth, found in ((0, 0), (0, 1), (1, 0), (1, 1)):
                wanted[name][truth, found] += int(((label == truth) & (mask.numpy() == found)).sum())
    assert {name: matrix.tolist() for name, matrix in one.matrices.items()} == {
        name: matrix.tolist() for name, matrix in wanted.items()
    }
    assert one.pixels.sum() == wanted["student"].sum() and one.stored.sum() == wanted["masks"].sum()
    text = report([run])
    assert text.count(str(run)) == 2 and "tenth 10" in text
