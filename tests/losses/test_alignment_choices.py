"""What each alignment computes, with a discriminator that can be followed by hand, and whom its gradient reaches."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.build import build_choice
from losses.inputs import DomainOutputs, TrainingProgress
from losses.registry import ALIGNMENTS

HEADS = ("main", "aux")
WEIGHTS = {"main": 0.5, "aux": 0.25}


class FirstChannel(nn.Module):
    """Says of each pixel that it is from the target by the first channel of what it sees, times `gain`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

    def forward(self, view: Tensor) -> Tensor:
        return self.gain * view[:, :1]


def outputs(seed: int, valid: Tensor | None = None) -> DomainOutputs:
    generator = torch.Generator().manual_seed(seed)
    scores = {h: torch.randn(2, 2, 4, 6, generator=generator, dtype=torch.float64).requires_grad_() for h in HEADS}
    return DomainOutputs(scores, torch.ones(2, 4, 6, dtype=torch.bool) if valid is None else valid)


def at(progress: float) -> TrainingProgress:
    return TrainingProgress(int(100 * progress), 100, 10, seed=0)


def build(kind: str, **options: Any) -> Any:
    return build_choice(ALIGNMENTS, kind, {kind: options}, 2, FirstChannel, WEIGHTS)


def heads() -> dict[str, list[nn.Parameter]]:
    torch.manual_seed(0)
    return {head: [*nn.Conv2d(3, 2, 1).double().parameters()] for head in HEADS}


def bce(scores: Tensor, domain: int) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, domain), reduction="none")


@pytest.mark.parametrize("kind", ["entropy", "softmax"])
def test_the_discriminators_see_entropy_or_probability(kind: str) -> None:
    source, target = outputs(1), outputs(2)
    terms = build(kind)(source, target, heads(), at(0.5))
    assert set(terms) == {"adv_main", "adv_aux", "dis_main", "dis_aux"}
    for head in HEADS:
        seen = [one.logits[head].softmax(1) for one in (source, target)]
        if kind == "entropy":
            seen = [-p * p.log2() for p in seen]
        first, second = (3 * view[:, :1] for view in seen)
        weight, adv = terms[f"adv_{head}"]
        assert weight == WEIGHTS[head]
        torch.testing.assert_close(adv, bce(second, 0).mean())  # the target is to pass for the source
        weight, dis = terms[f"dis_{head}"]
        assert weight == 1
        torch.testing.assert_close(dis, (bce(first, 0).mean() + bce(second, 1).mean()) / 2)


def test_minimal_entropy_is_the_mean_over_valid_target_pixels_without_a_discriminator() -> None:
    valid = torch.zeros(2, 4, 6, dtype=torch.bool)
    valid[0, 1, 2] = valid[1, 3] = True
    source, target = outputs(1), outputs(2, valid)
    alignment = build("minent")
    terms = alignment(source, target, heads(), at(0))
    assert not list(alignment.parameters())
    for head in HEADS:
        p = target.logits[head].softmax(1)
        expected = (-p * p.log2()).sum(1)[valid].mean()
        assert terms[f"ent_{head}"][0] == WEIGHTS[head]
        torch.testing.assert_close(terms[f"ent_{head}"][1], expected)
    terms["ent_main"][1].backward()
    gradient = target.logits["main"].grad
    assert (
        gradient is not None
        and bool((gradient.abs().sum(1)[valid] > 0).all())
        and not gradient[~valid[:, None].expand_as(gradient)].any()
    )
    assert source.logits["main"].grad is None


@pytest.mark.parametrize("progress", [0.0, 0.04, 0.05, 0.5])
def test_clan_by_hand(progress: float) -> None:
    """Fading, preheating, weights from the disagreement, and discriminator losses that are not halved."""
    source, target, two = outputs(1), outputs(2), heads()
    terms = build("clan", epsilon=0.4, lambda_local=10.0)(source, target, two, at(progress))
    first, second = (3 * (one.logits["main"] + one.logits["aux"]).softmax(1)[:, :1] for one in (source, target))
    p, q = (target.logits[head].softmax(1) for head in HEADS)
    gap = 1 - (p * q).sum(1, keepdim=True) / (p.norm(dim=1, keepdim=True) * q.norm(dim=1, keepdim=True))
    weight = torch.ones_like(gap) if progress < 0.05 else 0.4 + 10 * gap
    fading = 1 - progress
    assert terms["adv_main"][0] == pytest.approx(0.5 * fading) and terms["divergence"][0] == pytest.approx(
        0.02 * fading
    )
    torch.testing.assert_close(terms["adv_main"][1], (weight * bce(second, 0)).mean())
    torch.testing.assert_close(terms["dis_main"][1], bce(first, 0).mean() + (weight * bce(second, 1)).mean())
    assert terms["dis_main"][0] == 1
    a, b = (torch.cat([w.flatten() for w in two[head]]) for head in HEADS)
    torch.testing.assert_close(terms["divergence"][1], F.cosine_similarity(a, b, dim=0) + 1)


def test_clans_weight_is_a_weight_and_zero_where_the_classifiers_agree() -> None:
    """With epsilon 0 and equal classifiers nothing is left of the adversary; the weight itself gets no gradient."""
    target = outputs(2)
    same = DomainOutputs(dict.fromkeys(HEADS, target.logits["main"]), target.valid)
    terms = build("clan", epsilon=0.0)(outputs(1), same, heads(), at(0.5))
    assert terms["adv_main"][1].item() == pytest.approx(0, abs=1e-12)
    # Only the sum of the scores reaches the discriminator: both classifiers get the same gradient.
    terms = build("clan")(outputs(1), target, heads(), at(0.5))
    terms["adv_main"][1].backward()
    torch.testing.assert_close(target.logits["main"].grad, target.logits["aux"].grad)


@pytest.mark.parametrize("kind", ["entropy", "softmax", "clan"])
def test_each_player_gets_its_own_gradient(kind: str) -> None:
    source, target, alignment = outputs(1), outputs(2), build(kind)
    terms = alignment(source, target, heads(), at(0.5))
    for name in ("adv_main", "dis_main"):
        scores = [one.logits["main"] for one in (source, target)]
        found = torch.autograd.grad(
            terms[name][1], [*scores, *alignment.parameters()], allow_unused=True, retain_graph=True
        )
        reached = [gradient is not None and bool(gradient.any()) for gradient in found]
        if name == "adv_main":
            assert reached == [False, True, *[False] * len(list(alignment.parameters()))]
        else:
            assert not reached[0] and not reached[1] and any(reached[2:])


@pytest.mark.parametrize("kind", sorted(ALIGNMENTS))
def test_where_nothing_is_valid_every_term_is_finite_and_connected(kind: str) -> None:
    nowhere = torch.zeros(2, 4, 6, dtype=torch.bool)
    source, target = outputs(1, nowhere), outputs(2, nowhere)
    terms = build(kind)(source, target, heads(), at(0.5))
    sum(weight * value for weight, value in terms.values()).backward()  # type: ignore[union-attr]
    assert all(bool(torch.isfinite(value)) for _, value in terms.values())
    gradient = target.logits["main"].grad
    assert gradient is None or not gradient.any()
