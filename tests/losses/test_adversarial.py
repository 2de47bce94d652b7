import math

import pytest
import torch
from torch.nn import functional as F

from losses.adversarial import SOURCE, TARGET, discriminator_loss


def test_labels_of_the_domains():
    assert (SOURCE, TARGET) == (0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_the_softplus_of_the_signed_score(dtype):
    logits = torch.linspace(-6, 6, 24, dtype=dtype).reshape(2, 1, 3, 4)
    torch.testing.assert_close(discriminator_loss(logits, SOURCE), F.softplus(logits).mean())
    torch.testing.assert_close(discriminator_loss(logits, TARGET), F.softplus(-logits).mean())
    assert discriminator_loss(logits, SOURCE).dtype == dtype


def test_an_undecided_discriminator_costs_ln_2_and_a_fooled_one_is_cheap_for_the_segmenter():
    assert discriminator_loss(torch.zeros(1, 1, 8, 8), TARGET).item() == pytest.approx(math.log(2))
    target_map_taken_for_source = torch.full((1, 1, 8, 8), -20.0)
    assert discriminator_loss(target_map_taken_for_source, SOURCE) < 1e-6
    assert discriminator_loss(target_map_taken_for_source, TARGET) > 19


def test_stays_finite_for_extreme_scores_and_has_the_right_gradient():
    logits = torch.tensor([-1e30, 1e30], requires_grad=True)
    discriminator_loss(logits, SOURCE).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([0.0, 0.5]))
    small = torch.randn(1, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: discriminator_loss(z, TARGET), (small,))


def test_another_domain_raises():
    with pytest.raises(ValueError, match="SOURCE"):
        discriminator_loss(torch.zeros(1), 2)
