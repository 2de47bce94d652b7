import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losses.pseudo_label import FUSION_RULES, fuse
from utils.labels import IGNORE


def two_predictions(seed, classes=2):
    rng = torch.Generator().manual_seed(seed)
    return tuple((2 * torch.randn(2, classes, 6, 5, generator=rng)).softmax(1) for _ in range(2))


def pixel_rule(a, e, rule, floor):
    """Label of one pixel from two probability vectors, written as the rules read."""
    va, ve = int(np.argmax(a)), int(np.argmax(e))
    if rule == "union":
        voters = [p[1] for p, vote in ((a, va), (e, ve)) if vote == 1]
        label, confidence = (1, max(voters)) if voters else (0, min(a[0], e[0]))
    elif rule == "anchor":
        label, confidence = va, a[va]
    elif rule == "ema":
        label, confidence = ve, e[ve]
    elif rule == "agree":
        label, confidence = (va, min(a[va], e[va])) if va == ve else (IGNORE, 1.0)
    else:
        both = (a + e) / 2
        label, confidence = int(np.argmax(both)), both.max()
    return label if confidence >= floor else IGNORE


@given(seed=st.integers(0, 2**31), rule=st.sampled_from(FUSION_RULES), floor=st.sampled_from([0.0, 0.55, 0.8, 1.0]))
@settings(max_examples=60, deadline=None)
def test_rules_against_one_pixel_at_a_time(seed, rule, floor):
    anchor, ema = two_predictions(seed)
    label = fuse(anchor, ema, rule, floor)
    assert label.dtype == torch.int64 and label.shape == (2, 6, 5)
    for b, i, j in np.ndindex(2, 6, 5):
        expected = pixel_rule(anchor[b, :, i, j].numpy(), ema[b, :, i, j].numpy(), rule, floor)
        assert label[b, i, j].item() == expected


@pytest.mark.parametrize("rule", ["anchor", "ema", "agree", "mean"])
def test_more_than_two_classes(rule):
    anchor, ema = two_predictions(3, classes=4)
    label = fuse(anchor, ema, rule, 0.4)
    for b, i, j in np.ndindex(2, 6, 5):
        assert label[b, i, j].item() == pixel_rule(anchor[b, :, i, j].numpy(), ema[b, :, i, j].numpy(), rule, 0.4)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_union_is_the_union_of_both_cloud_masks(seed):
    anchor, ema = two_predictions(seed)
    cloud = fuse(anchor, ema, "union") == 1
    assert torch.equal(cloud, (anchor.argmax(1) == 1) | (ema.argmax(1) == 1))


@given(seed=st.integers(0, 2**31), rule=st.sampled_from(FUSION_RULES))
@settings(max_examples=30, deadline=None)
def test_a_floor_only_removes_and_removes_more_as_it_rises(seed, rule):
    anchor, ema = two_predictions(seed)
    previous = fuse(anchor, ema, rule)
    for floor in (0.3, 0.55, 0.7, 0.9, 1.0):
        label = fuse(anchor, ema, rule, floor)
        assert torch.equal(label[label != IGNORE], previous[label != IGNORE])
        previous = label


@pytest.mark.parametrize("rule", FUSION_RULES)
def test_equal_networks_give_their_argmax_and_invalid_pixels_are_ignored(rule):
    prob, _ = two_predictions(0)
    valid = torch.rand(2, 6, 5) < 0.5
    assert torch.equal(fuse(prob, prob, rule), prob.argmax(1))
    assert torch.equal(fuse(prob, prob, rule, valid=valid), prob.argmax(1).masked_fill(~valid, IGNORE))


@pytest.mark.parametrize("rule", FUSION_RULES)
def test_ties_go_to_background_and_nan_is_undecided(rule):
    tie = torch.full((1, 2, 1, 1), 0.5)
    assert fuse(tie, tie, rule).item() == 0
    assert fuse(tie, tie, rule, floor=0.5).item() == 0  # a confidence equal to the floor is kept
    assert fuse(tie * torch.nan, tie * torch.nan, rule).item() == IGNORE


def test_union_floor_by_hand():
    anchor = torch.tensor([[0.4, 0.9, 0.6], [0.6, 0.1, 0.4]])[None, :, None]  # (1, 2, 1, 3)
    ema = torch.tensor([[0.1, 0.8, 0.9], [0.9, 0.2, 0.1]])[None, :, None]
    assert fuse(anchor, ema, "union", 0.85).flatten().tolist() == [1, IGNORE, IGNORE]
    assert fuse(anchor, ema, "union", 0.7).flatten().tolist() == [1, 0, IGNORE]
    assert fuse(anchor, ema, "agree", 0.7).flatten().tolist() == [IGNORE, 0, IGNORE]


def test_errors():
    three, two = torch.rand(1, 3, 2, 2), torch.rand(1, 2, 2, 2)
    with pytest.raises(ValueError, match="use 'mean'"):
        fuse(three, three, "union")
    with pytest.raises(ValueError, match="unknown fusion rule 'vote'"):
        fuse(two, two, "vote")
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 55"):
        fuse(two, two, "union", 55)
    with pytest.raises(ValueError, match="differ in shape"):
        fuse(two, three, "mean")
