"""The joint embedding, its sampling and the numbers beside it."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from nets.segmenter import Prediction, Segmenter
from report.embedding import Panel, Patch, Pixels, domain_probe, embed, features_at, sample_pixels
from utils.errors import MissingError


class Identity(Segmenter):
    """The features are the image itself; cloud where its first band is above one half."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.num_features, self.align_corners = 3, False
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, image: torch.Tensor) -> Prediction:
        logits = torch.cat([0.5 - image[:, :1], image[:, :1] - 0.5], 1)
        return Prediction(main=logits, aux=logits, features=image, scores=logits)


def patches(seed: int, count: int = 6, shift: float = 0.0, labels: bool = True) -> list[Patch]:
    made = []
    for i in range(count):
        image = torch.rand(1, 3, 8, 10, generator=torch.Generator().manual_seed(100 * seed + i))
        label = (image[0, 0] > 0.5).numpy().astype(np.uint8)
        made.append(Patch(image + torch.tensor([0.0, shift, 0.0])[:, None, None], label if labels else None))
    return made


def measured(source: Sequence[Patch], target: Sequence[Patch]) -> tuple[Panel, Pixels]:
    pixels, _ = sample_pixels({"source": source, "target": target}, Identity(), 60, seed=0)
    return embed(features_at(Identity(), [*source, *target], pixels), pixels, seed=0), pixels


def test_equal_domains_are_not_told_apart_and_shifted_ones_are() -> None:
    same, _ = measured(patches(1), patches(1))
    assert same.probe == pytest.approx(0.5, abs=0.08)
    alike, _ = measured(patches(1), patches(2))
    assert alike.probe == pytest.approx(0.5, abs=0.12)
    shifted, _ = measured(patches(1), patches(2, shift=3.0))
    assert shifted.probe > 0.98


def test_the_probe_of_the_same_pixels_in_both_domains_is_exactly_chance() -> None:
    features = np.random.default_rng(0).normal(size=(40, 5))
    group = np.repeat(np.arange(8), 5)
    doubled, source = np.concatenate([features, features]), np.repeat([True, False], 40)
    assert domain_probe(doubled, source, np.concatenate([group, group])) == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("images", [50, 5, 3, 2])
def test_the_probe_is_fair_to_domains_of_unequal_length(images: int) -> None:
    """Fifty source images against a few of the same distribution, as many pixels of each."""
    found = []
    for seed in range(6):
        features = np.random.default_rng(seed).normal(size=(600, 6))
        source = np.repeat([True, False], 300)
        group = np.concatenate([np.arange(300) % 50, np.arange(300) % images])
        found.append(domain_probe(features, source, group))
    assert np.mean(found) == pytest.approx(0.5, abs=0.05)
    shifted = features + 5 * source[:, None]
    assert domain_probe(shifted, source, group) > 0.98


def test_one_image_cannot_be_probed() -> None:
    features, source = np.random.default_rng(0).normal(size=(20, 3)), np.repeat([True, False], 10)
    assert np.isnan(domain_probe(features, source, np.where(source, np.arange(20) % 5, 0)))


def test_silhouette_is_high_where_the_classes_are_apart() -> None:
    rng = np.random.default_rng(0)
    cloud = np.repeat([False, True, False, True], 30)
    source = np.repeat([True, True, False, False], 30)
    pixels = Pixels(*(np.zeros(120, int) for _ in range(3)), source, cloud, np.tile(np.arange(6), 20))
    apart = embed(rng.normal(size=(120, 4)) + 20 * cloud[:, None], pixels, seed=0)
    mixed = embed(rng.normal(size=(120, 4)), pixels, seed=0)
    assert apart.silhouette > 0.6 > 0.2 > mixed.silhouette
    centre = {kind: apart.points[cloud == kind].mean(0) for kind in (False, True)}
    spread = max(apart.points[cloud == kind].std() for kind in (False, True))
    assert np.linalg.norm(centre[True] - centre[False]) > spread


def test_sampling_is_balanced_seeded_and_reads_the_right_pixels() -> None:
    source, target = patches(1), patches(2)
    both = {"source": source, "target": target}
    pixels, predicted = sample_pixels(both, Identity(), 25, seed=3)
    assert not predicted and len(pixels.source) == 100
    for role in (True, False):
        for cloud in (True, False):
            assert ((pixels.source == role) & (pixels.cloud == cloud)).sum() == 25
    features = features_at(Identity(), [*source, *target], pixels)
    assert np.array_equal(features[:, 0] > 0.5, pixels.cloud)
    assert np.array_equal(pixels.patch < 6, pixels.source)
    assert np.array_equal(pixels.patch % 6, pixels.group)
    places = np.stack([pixels.patch, pixels.row, pixels.column], 1)
    assert len(np.unique(places, axis=0)) == 100
    again, _ = sample_pixels(both, Identity(), 25, seed=3)
    other, _ = sample_pixels(both, Identity(), 25, seed=4)
    assert np.array_equal(again.row, pixels.row) and not np.array_equal(other.row, pixels.row)


def test_without_labels_the_class_is_the_prediction() -> None:
    pixels, predicted = sample_pixels({"source": patches(1), "target": patches(2, labels=False)}, Identity(), 20, 0)
    assert predicted
    features = features_at(Identity(), [*patches(1), *patches(2)], pixels)
    assert np.array_equal(features[:, 0] > 0.5, pixels.cloud)


def test_unknown_pixels_are_never_drawn_and_an_absent_class_is_named() -> None:
    half = [w._replace(label=np.where(np.arange(10) < 5, w.label, 255)) for w in patches(1) if w.label is not None]
    pixels, _ = sample_pixels({"source": half, "target": half}, Identity(), 20, 0)
    assert pixels.column.max() < 5
    clear = [w._replace(label=np.zeros((8, 10), np.uint8)) for w in patches(1)]
    with pytest.raises(MissingError, match=r"too few of: target cloud$"):
        sample_pixels({"source": half, "target": clear}, Identity(), 20, 0)


def test_the_embedding_is_seeded() -> None:
    first, pixels = measured(patches(1), patches(2))
    second, _ = measured(patches(1), patches(2))
    assert np.array_equal(first.points, second.points) and first.points.shape == (len(pixels.source), 2)
