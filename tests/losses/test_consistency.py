import numpy as np
import pytest
import torch

from losses.consistency import consistency

FORMS = ["logits", "prob", "kl"]


def test_known_answer(known):
    assert 0.1 * consistency(known.z2, known.z1).item() == pytest.approx(0.1347027017, abs=5e-11)


def test_forms_against_numpy(known):
    a, m = known.z1.numpy(), known.z2.numpy()
    valid = known.y.bool()
    keep = valid.numpy()
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (a, m))
    expected = {
        "logits": ((a - m) ** 2).mean(1)[keep].mean(),
        "prob": ((p - q) ** 2).mean(1)[keep].mean(),
        "kl": 0.5 * (p * np.log(p / q) + q * np.log(q / p)).sum(1)[keep].mean(),
    }
    for form in FORMS:
        value = consistency(known.z1, known.z2, form, valid).item()
        assert value == pytest.approx(expected[form], rel=1e-12)
        assert value == pytest.approx(consistency(known.z2, known.z1, form, valid).item())
        everywhere = torch.ones_like(valid)
        assert torch.equal(consistency(known.z1, known.z2, form), consistency(known.z1, known.z2, form, everywhere))


@pytest.mark.parametrize("form", FORMS)
def test_equal_heads_agree(known, form):
    assert consistency(known.z1, known.z1.clone(), form) == 0


def test_only_the_logits_form_sees_a_common_shift(known):
    shifted = known.z1 + 3 * known.y[:, None]
    assert consistency(shifted, known.z1, "logits") > 1
    for form in ("prob", "kl"):
        assert consistency(shifted, known.z1, form).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fill", [5.0, 3e38, -3e38])
def test_invalid_pixels_change_neither_value_nor_gradient(known, form, fill):
    valid = known.y.bool()
    results = []
    for value in (0.0, fill):
        aux, main = known.z1.float(), known.z2.float()
        aux[:, 0][~valid] = value
        main[:, 1][~valid] = -value
        aux.requires_grad_()
        main.requires_grad_()
        loss = consistency(aux, main, form, valid)
        loss.backward()
        assert (aux.grad.movedim(1, -1)[~valid] == 0).all()
        results.append((loss.detach(), aux.grad, main.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_no_valid_pixel_gives_a_connected_zero(form):
    aux, main = (torch.randn(1, 2, 3, 3, requires_grad=True) for _ in range(2))
    loss = consistency(aux, main, form, torch.zeros(1, 3, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert not aux.grad.any() and not main.grad.any()


@pytest.mark.parametrize("form", FORMS)
def test_both_heads_get_the_right_gradient(known, form):
    aux, main = (z[:1, :, :2, :3].clone().requires_grad_() for z in (known.z1, known.z2))
    assert torch.autograd.gradcheck(lambda a, m: consistency(a, m, form), (aux, main))
    grads = torch.autograd.grad(consistency(aux, main, form), (aux, main))
    assert all(np.abs(g.numpy()).max() > 0 for g in grads)


def test_errors(known):
    with pytest.raises(ValueError, match="differ in shape"):
        consistency(known.z1, known.z1[:1])
    with pytest.raises(ValueError, match="unknown consistency form 'mse'"):
        consistency(known.z1, known.z2, "mse")
