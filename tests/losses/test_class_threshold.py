import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losses.class_threshold import EntropyHistogram, below_threshold, quantise
from losses.entropy import normalised_entropy
from utils.labels import IGNORE


def class_median_entropy(entropy, label, classes, floor=0.1):
    """The rule on whole images: of the n sorted entropies of a class the one at `round(n / 2)`, at least `floor`."""
    thresholds = entropy.new_full((classes,), floor)
    for cls in range(classes):
        ordered = entropy[label == cls].sort().values
        if len(ordered):
            thresholds[cls] = ordered[round(len(ordered) / 2)]  # ties to even: at most n - 1
    return thresholds.clamp(min=floor)


def images(seed, number=4, classes=3, sharpness=1.0):
    """Entropies (N, 9, 7) in [0, 1] and labels with some ignored pixels."""
    rng = torch.Generator().manual_seed(seed)
    entropy = torch.rand(number, 9, 7, generator=rng, dtype=torch.float64) ** sharpness
    label = torch.randint(classes, entropy.shape, generator=rng)
    return entropy, label.masked_fill(torch.rand(label.shape, generator=rng) < 0.2, IGNORE)


def test_known_answer(known):
    prob = known.z1[:1].softmax(1)
    entropy, label = normalised_entropy(prob), prob.argmax(1)
    assert entropy.mean().item() == pytest.approx(0.8877825644, abs=5e-11)
    assert label.flatten().bincount().tolist() == [32, 64]
    expected = pytest.approx([0.9597742004, 0.9128754170], abs=5e-11)
    assert class_median_entropy(entropy, label, 2).tolist() == expected


@given(seed=st.integers(0, 2**31), sharpness=st.sampled_from([0.3, 1.0]))
@settings(max_examples=30, deadline=None)
def test_half_of_each_class_is_kept(seed, sharpness):
    entropy, label = images(seed, sharpness=sharpness)
    thresholds = class_median_entropy(entropy, label, 3)
    kept = below_threshold(entropy, label, thresholds)
    assert ((kept == label) | (kept == IGNORE)).all() and (kept[label == IGNORE] == IGNORE).all()
    for cls in range(3):
        number, accepted = (label == cls).sum(), (kept == cls).sum()
        assert abs(accepted - number / 2) <= 1.5
        assert (
            entropy[kept == cls].max() <= thresholds[cls]
            and entropy[(label == cls) & (kept != cls)].min() > thresholds[cls]
        )


def test_a_sure_class_and_an_absent_one_get_the_floor():
    entropy, label = torch.tensor([0.01, 0.02, 0.03, 0.9]), torch.tensor([0, 0, 0, IGNORE])
    thresholds = class_median_entropy(entropy, label, 2, floor=0.1)
    torch.testing.assert_close(thresholds, torch.tensor([0.1, 0.1]))
    assert below_threshold(entropy, label, thresholds).tolist() == [0, 0, 0, IGNORE]


@given(n=st.integers(1, 12))
def test_the_element_is_the_rounded_half(n):
    entropy = torch.linspace(0.2, 0.9, n, dtype=torch.float64)
    thresholds = class_median_entropy(entropy.flip(0), torch.zeros(n, dtype=torch.int64), 1)
    assert thresholds[0] == entropy[min(round(n / 2), n - 1)]


def test_quantise_spans_a_uint16_and_stays_within_half_a_step():
    entropy = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert quantise(torch.tensor([0.0, 1.0, 1.0 + 1e-6, -1e-9])).tolist() == [0, 65535, 65535, 0]
    assert (quantise(entropy).double() / 65535 - entropy).abs().max() <= 0.5 / 65535 + 1e-12


@given(seed=st.integers(0, 2**31), order=st.permutations(range(4)), sharpness=st.sampled_from([1.0, 8.0]))
@settings(max_examples=30, deadline=None)
def test_a_stream_gives_what_the_whole_gives_in_any_order(seed, order, sharpness):
    entropy, label = images(seed, sharpness=sharpness)
    histogram = EntropyHistogram(4)  # class 3 does not occur
    for i in order:
        histogram.add(entropy[i], label[i])
    streamed, whole = histogram.thresholds(), class_median_entropy(entropy, label, 4)
    assert (streamed - whole).abs().max() <= 1 / 65535
    quantised = class_median_entropy(quantise(entropy).double() / 65535, label, 4)
    assert torch.equal(streamed, quantised)


def test_an_ignored_image_adds_nothing():
    entropy, label = images(0)
    histogram = EntropyHistogram(3, bins=16)
    histogram.add(entropy, torch.full_like(label, IGNORE))
    assert not histogram.counts.any() and histogram.thresholds(0.2).tolist() == [0.2] * 3
