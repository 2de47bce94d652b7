import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losses.entropy import entropy_loss, normalised_entropy, weighted_self_information

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def test_known_answers(known):
    prob = known.z1.softmax(1)
    information = weighted_self_information(prob)
    assert information.shape == prob.shape
    assert information.sum().item() == pytest.approx(169.1165169519, abs=5e-11)
    assert information.mean().item() == pytest.approx(0.4404075962, abs=5e-11)
    assert entropy_loss(prob).item() == pytest.approx(0.8808151925, abs=5e-11)
    assert entropy_loss(prob).item() == pytest.approx(2 * information.mean().item())


@given(seed=st.integers(0, 2**31), classes=st.integers(2, 6), scale=st.sampled_from([0.0, 1.0, 30.0, 1000.0]))
@settings(max_examples=40, deadline=None)
def test_entropy_lies_in_the_unit_interval_and_matches_numpy(seed, classes, scale):
    rng = torch.Generator().manual_seed(seed)
    prob = (scale * torch.randn(2, classes, 3, 4, generator=rng)).softmax(1)
    entropy = normalised_entropy(prob)
    assert entropy.shape == (2, 3, 4)
    assert (entropy >= 0).all() and (entropy <= 1).all()
    p = prob.double().numpy()
    shannon = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(1) / np.log(classes)
    np.testing.assert_allclose(entropy.numpy(), shannon, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_one_hot_is_zero_and_uniform_is_one(dtype, classes):
    one_hot = torch.eye(classes, dtype=dtype)
    assert (normalised_entropy(one_hot) == 0).all()
    uniform = torch.full((1, classes, 2), 1 / classes, dtype=dtype)
    torch.testing.assert_close(normalised_entropy(uniform), torch.ones(1, 2, dtype=dtype), atol=0.01, rtol=0)
    if dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(normalised_entropy(uniform), torch.ones(1, 2, dtype=dtype))


@pytest.mark.parametrize("function", [weighted_self_information, normalised_entropy, entropy_loss])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_is_finite_at_zero_probability(function, dtype):
    prob = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]], dtype=dtype, requires_grad=True)
    value = function(prob).sum()
    value.backward()
    assert value.isfinite()
    assert prob.grad.isfinite().all()


def test_rounding_does_not_leave_the_unit_interval():
    above_one = torch.tensor([[1.0 + 1e-6, 0.0]])
    assert normalised_entropy(above_one) == 0
    for classes in range(2, 40):
        assert normalised_entropy(torch.full((1, classes), 1 / classes)) <= 1


def test_gradient_through_a_saturated_softmax_is_finite():
    logits = torch.tensor([[[200.0]], [[0.0]]]).reshape(1, 2, 1, 1).requires_grad_()
    entropy_loss(logits.softmax(1)).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("function", [weighted_self_information, normalised_entropy, entropy_loss])
def test_gradient(function):
    prob = torch.tensor([[0.2, 0.8], [0.45, 0.55], [0.01, 0.99]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (prob,))


def test_a_common_shift_of_the_scores_changes_nothing(known):
    torch.testing.assert_close(
        normalised_entropy((known.z1 + 5).softmax(1)), normalised_entropy(known.z1.softmax(1)), rtol=0, atol=1e-14
    )


def test_the_rank_of_images_does_not_depend_on_how_classes_are_numbered(known):
    prob = known.z1.softmax(1)
    torch.testing.assert_close(normalised_entropy(prob.flip(1)), normalised_entropy(prob))


def test_one_class_raises():
    with pytest.raises(ValueError, match="at least 2 classes"):
        weighted_self_information(torch.ones(1, 1, 2, 2))
