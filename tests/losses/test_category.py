import pytest
import torch
from torch import nn

from losses.adversarial import SOURCE, TARGET, discriminator_loss
from losses.category import discrepancy, weight_divergence, weighted_discriminator_loss


def test_known_answers(known):
    gap = discrepancy(known.z1.softmax(1), known.z2.softmax(1))
    assert gap.mean().item() == pytest.approx(0.1841094714, abs=5e-11)
    value = weighted_discriminator_loss(known.z1[:, :1], SOURCE, gap, 0.4, 40)
    assert value.item() == pytest.approx(11.7930002113, abs=5e-10)


def test_discrepancy_is_0_in_agreement_1_in_contradiction_and_symmetric(known):
    prob = known.z1.float().softmax(1)
    assert discrepancy(prob, prob).abs().max() < 1e-6
    sure = torch.tensor([1.0, 0.0])[None, :, None, None]
    assert discrepancy(sure, sure.flip(1)).item() == 1
    other = known.z2.float().softmax(1)
    gap = discrepancy(prob, other)
    assert gap.shape == (2, 8, 12) and gap.min() >= 0 and gap.max() <= 1
    torch.testing.assert_close(gap, discrepancy(other, prob))


@pytest.mark.parametrize("size", [1, 3])
def test_weighted_loss_counts_a_pixel_by_its_weight(size):
    rng = torch.Generator().manual_seed(size)
    logits, weight = torch.randn(size, 1, 4, 5, generator=rng), torch.rand(size, 4, 5, generator=rng)
    value = weighted_discriminator_loss(logits, TARGET, weight, 0.4, 10)
    torch.testing.assert_close(weighted_discriminator_loss(logits, TARGET, weight[:, None], 0.4, 10), value)
    each = [
        (0.4 + 10 * weight[b, i, j]) * discriminator_loss(logits[b, 0, i, j], TARGET)
        for b, i, j in torch.cartesian_prod(torch.arange(size), torch.arange(4), torch.arange(5))
    ]
    torch.testing.assert_close(value, torch.stack(each).mean())
    agreed = weighted_discriminator_loss(logits, SOURCE, torch.zeros(size, 4, 5), 0.4, 40)
    torch.testing.assert_close(agreed, 0.4 * discriminator_loss(logits, SOURCE))


def test_weight_divergence_measures_the_angle():
    a, b = nn.Conv2d(3, 2, 3), nn.Conv2d(3, 2, 3)
    assert weight_divergence([*a.parameters()], [*a.parameters()]).item() == pytest.approx(2)
    flat_a, flat_b = (nn.utils.parameters_to_vector(m.parameters()) for m in (a, b))
    value = weight_divergence([*a.parameters()], [*b.parameters()])
    torch.testing.assert_close(value, flat_a @ flat_b / flat_a.norm() / flat_b.norm() + 1)
    value.backward()
    assert all(p.grad.any() for m in (a, b) for p in m.parameters())
    with torch.no_grad():
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            q.copy_(-3 * p)
    assert weight_divergence([*a.parameters()], [*b.parameters()]).item() == pytest.approx(0, abs=1e-6)


def test_errors():
    with pytest.raises(ValueError, match="different shapes"):
        weight_divergence([*nn.Linear(2, 3).parameters()], [*nn.Linear(3, 2).parameters()])
    with pytest.raises(ValueError, match="does not cover"):
        weighted_discriminator_loss(torch.zeros(2, 1, 4, 4), SOURCE, torch.zeros(2, 2, 2))
    with pytest.raises(ValueError, match="SOURCE"):
        weighted_discriminator_loss(torch.zeros(2, 1, 4, 4), 2, torch.zeros(2, 4, 4))


def test_pixels_without_data_count_in_no_discriminator_loss():
    logits, gap = torch.randn(1, 1, 4, 5, generator=torch.Generator().manual_seed(0)), torch.rand(1, 4, 5)
    valid = torch.zeros(1, 1, 4, 5)
    valid[0, 0, 1:3] = 1
    kept = weighted_discriminator_loss(logits[:, :, 1:3], TARGET, gap[:, 1:3])
    torch.testing.assert_close(weighted_discriminator_loss(logits, TARGET, gap, valid=valid), kept)
    torch.testing.assert_close(discriminator_loss(logits, TARGET, valid), discriminator_loss(logits[:, :, 1:3], TARGET))
    for loss in (discriminator_loss, lambda *args: weighted_discriminator_loss(*args[:2], gap, valid=args[2])):
        nothing = loss(logits.requires_grad_(), SOURCE, torch.zeros(1, 1, 4, 5))
        assert nothing.item() == 0 and nothing.requires_grad
