import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from losses.segmentation import cross_entropy, focal, soft_jaccard
from utils.labels import IGNORE

LOSSES = [cross_entropy, focal, soft_jaccard]


def random_case(seed, classes=3, ignored=0.3):
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, classes, 5, 7, generator=rng, dtype=torch.float64)
    label = torch.randint(classes, (2, 5, 7), generator=rng)
    return logits, label.masked_fill(torch.rand(2, 5, 7, generator=rng) < ignored, IGNORE)


def test_known_answers(known):
    assert soft_jaccard(known.z1, known.y).item() == pytest.approx(0.6682657016, abs=5e-11)
    assert cross_entropy(known.z1, known.y).item() == pytest.approx(0.7940868828, abs=5e-11)
    assert focal(known.z1, known.y).item() == pytest.approx(0.3265534965, abs=5e-11)


@given(seed=st.integers(0, 2**31), classes=st.integers(2, 5), ignored=st.sampled_from([0.0, 0.3, 0.9]))
@settings(max_examples=30, deadline=None)
def test_against_plain_numpy(seed, classes, ignored):
    logits, label = random_case(seed, classes, ignored)
    z, y = logits.numpy(), label.numpy()
    prob = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    onehot = np.stack([y == k for k in range(classes)], 1).astype(float)
    prob = prob * (y != IGNORE)[:, None]
    both = (prob * onehot).sum()
    if (y != IGNORE).any():
        jaccard = 1 - both / (prob.sum() + onehot.sum() - both + 1e-5)
        nll = -np.log((prob * onehot).sum(1)[y != IGNORE]).mean()
    else:
        jaccard = nll = 0.0
    assert soft_jaccard(logits, label).item() == pytest.approx(jaccard, abs=1e-12)
    assert cross_entropy(logits, label).item() == pytest.approx(nll, abs=1e-12)


def test_cross_entropy_equals_the_library_mean():
    logits, label = random_case(0)
    torch.testing.assert_close(cross_entropy(logits, label), F.cross_entropy(logits, label, ignore_index=IGNORE))


def test_focal_is_the_cross_entropy_at_gamma_0_and_falls_with_gamma():
    logits, label = random_case(3)
    torch.testing.assert_close(focal(logits, label, gamma=0.0), cross_entropy(logits, label))
    values = [focal(logits, label, gamma=g).item() for g in (0.0, 1.0, 2.0, 5.0)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ignored_pixels_change_neither_value_nor_gradient(loss, dtype):
    logits, label = random_case(1)
    ignored = (label == IGNORE)[:, None].expand_as(logits)
    results = []
    for fill in (0.0, 7.0, torch.finfo(dtype).max, torch.finfo(dtype).min):
        z = logits.to(dtype).clone()
        z[:, :1][ignored[:, :1]] = fill
        z.requires_grad_()
        value = loss(z, label)
        value.backward()
        assert (z.grad[ignored] == 0).all()
        results.append((value.detach(), z.grad))
    for value, grad in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(grad, results[0][1])


@pytest.mark.parametrize("loss", LOSSES)
def test_no_labelled_pixel_gives_a_connected_zero(loss):
    logits = torch.randn(2, 2, 3, 4, requires_grad=True)
    value = loss(logits, torch.full((2, 3, 4), IGNORE))
    value.backward()
    assert value.shape == () and value.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient(loss):
    logits, label = random_case(2)
    assert torch.autograd.gradcheck(loss, (logits[:1, :, :3, :3].clone().requires_grad_(), label[:1, :3, :3]))


@pytest.mark.parametrize("loss", LOSSES)
def test_sure_and_right_is_near_zero_and_sure_and_wrong_is_high(loss, known):
    sure = F.one_hot(known.y, 2).movedim(-1, 1).double() * 50
    assert loss(sure, known.y) < 1e-6
    assert loss(-sure, known.y) > 0.99


@pytest.mark.parametrize("loss", LOSSES)
def test_label_of_another_size_raises(loss):
    with pytest.raises((ValueError, RuntimeError)):
        loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, dtype=torch.int64))
