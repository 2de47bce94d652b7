"""What the network makes of both domains: one joint t-SNE per model, and two numbers that need no eye.

Source: t-SNE, van der Maaten and Hinton, JMLR 2008; silhouette, Rousseeuw 1987.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.metrics import balanced_accuracy_score, silhouette_score
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from nets.segmenter import Segmenter, evaluating, grid_places
from utils.errors import MissingError
from utils.output import progress_bar


class Patch(NamedTuple):
    """A piece of an image as the network is shown it: (1, C, h, w), its classes (H, W) of 0, 1, 255 or None, and where
    it has data, (H, W) bool, or None for everywhere."""

    image: Tensor
    label: np.ndarray | None
    valid: np.ndarray | None = None


class Pixels(NamedTuple):
    """Sampled positions: `patch` and (`row`, `column`) of the feature map, all (N,), with domain, class and group."""

    patch: np.ndarray
    row: np.ndarray
    column: np.ndarray
    source: np.ndarray
    cloud: np.ndarray
    group: np.ndarray


class Panel(NamedTuple):
    """One model's embedding: `points` (N, 2); `probe`, see `domain_probe`, 0.5 where the domains are aligned; and the
    `silhouette` of the two classes in the features, in [-1, 1], high where they are apart."""

    points: np.ndarray
    probe: float
    silhouette: float


def _below(full: tuple[int, ...], low: tuple[int, int], align_corners: bool) -> tuple[np.ndarray, ...]:
    """The rows and columns of an image on which its features stand."""
    return np.ix_(*(grid_places(f, n, align_corners).numpy() for f, n in zip(full, low, strict=True)))


@torch.inference_mode()
def sample_pixels(
    patches: Mapping[str, Sequence[Patch]], reference: Segmenter, per_kind: int, seed: int
) -> tuple[Pixels, bool]:
    """Choose the same number of feature pixels of each domain and class, at most `per_kind`.

    The class of a feature pixel is the label at its place; where an image has none, it is what `reference` predicts.

    Args:
        patches: "source" and "target" -> their patches.

    Returns:
        The pixels, and whether any class is a prediction.

    Raises:
        MissingError: a class is absent from a domain.
    """
    rng, device = np.random.default_rng(seed), next(reference.parameters()).device
    predicted, offset = False, 0
    kinds: dict[tuple[bool, bool], list[np.ndarray]] = {}  # (is source, is cloud) -> (n, 4) for each patch
    for role in ("source", "target"):
        for position, patch in enumerate(progress_bar(patches[role], desc=f"t-SNE, {role}", unit="image", leave=False)):
            with evaluating(reference):
                prediction = reference(patch.image.to(device))
            size, aligned = prediction.features.shape[-2:], reference.align_corners
            if patch.label is None:
                predicted = True
                classes = prediction.scores[0].argmax(0).cpu().numpy()
            else:
                classes = patch.label[_below(patch.label.shape, size, aligned)]
            if patch.valid is not None:
                classes = np.where(patch.valid[_below(patch.valid.shape, size, aligned)], classes, 255)
            for cloud in (False, True):
                row, column = np.nonzero(classes == cloud)
                places = np.stack(np.broadcast_arrays(offset + position, row, column, position), 1)
                kinds.setdefault((role == "source", cloud), []).append(places)
        offset += len(patches[role])
    found = {kind: np.concatenate(places) for kind, places in kinds.items()}
    count = min(per_kind, *map(len, found.values()))
    if count < 2:
        empty = [f"{'source' if s else 'target'} {'cloud' if c else 'clear'}" for s, c in found if len(found[s, c]) < 2]
        raise MissingError(f"t-SNE needs pixels of both classes in both domains; found too few of: {', '.join(empty)}")
    chosen = np.concatenate([places[rng.choice(len(places), count, False)] for places in found.values()])  # (N, 4)
    is_source, is_cloud = np.repeat([*found], count, axis=0).T
    patch_index, row, column, group = chosen.T
    return Pixels(patch_index, row, column, is_source, is_cloud, group), predicted


@torch.inference_mode()
def features_at(segmenter: Segmenter, patches: Sequence[Patch], pixels: Pixels) -> np.ndarray:
    """What the main head reads, (N, D), of the sampled pixels."""
    device = next(segmenter.parameters()).device
    found = np.empty((len(pixels.patch), segmenter.num_features), np.float32)
    for index in np.unique(pixels.patch):
        with evaluating(segmenter):
            features = segmenter(patches[index].image.to(device)).features[0].cpu().numpy()  # (D, h, w)
        here = pixels.patch == index
        found[here] = features[:, pixels.row[here], pixels.column[here]].T
    return found


def embed(features: np.ndarray, pixels: Pixels, seed: int) -> Panel:
    """Scale, reduce by PCA, embed all points at once, and measure."""
    scaled = StandardScaler().fit_transform(features)
    reduced = PCA(min(50, *scaled.shape), random_state=seed).fit_transform(scaled)
    perplexity = min(30.0, (len(reduced) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(reduced)
    silhouette = float(silhouette_score(reduced, pixels.cloud))
    return Panel(points, domain_probe(reduced, pixels.source, pixels.group), silhouette)


def domain_probe(features: np.ndarray, source: np.ndarray, group: np.ndarray) -> float:
    """Balanced accuracy of logistic regression that tells source from target, on images that it was not fitted to.

    Args:
        features: (N, D).
        source: (N,) bool.
        group: (N,) the image of each pixel, counted within its domain: image i of both domains is held out together,
            so that two equal domains give one half. NaN if a domain has a single image.
    """
    folds = min(5, *(len(np.unique(group[source == side])) for side in (False, True)))
    if folds < 2:
        return float("nan")
    # Domains of unequal length have unequal shares in a fold: classes are weighted, and all folds are scored at once.
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=0.1, class_weight="balanced"))
    fold = np.unique(group, return_inverse=True)[1] % folds
    found = cross_val_predict(model, features, source, groups=fold, cv=LeaveOneGroupOut())
    return float(balanced_accuracy_score(source, found))
