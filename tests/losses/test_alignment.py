"""Two players: each adversarial loss reaches its own player alone, and padding reaches neither."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losses.alignment import (
    Alignment,
    CategoryAlignment,
    EntropyAlignment,
    SoftmaxAlignment,
    alignment,
    entropy_map,
    frozen,
)
from losses.inputs import DomainOutputs, TrainingProgress
from nets.discriminator import Discriminator

HEADS = ("main", "aux")
EVERYWHERE = torch.ones(2, 32, 32, dtype=torch.bool)


@pytest.fixture
def discriminators() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({head: Discriminator(2, 4) for head in HEADS}).double()


def logits(seed: int, images: int = 2, requires_grad: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        head: torch.randn(images, 2, 32, 32, generator=generator, dtype=torch.float64).requires_grad_(requires_grad)
        for head in HEADS
    }


def maps(scores: dict[str, Tensor], valid: Tensor | None = None) -> dict[str, Tensor]:
    return {
        head: entropy_map(value, torch.ones(len(value), 32, 32, dtype=torch.bool) if valid is None else valid)
        for head, value in scores.items()
    }


def gradients(module: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in module.parameters()]


def test_segmenter_loss_gives_the_discriminators_no_gradient(discriminators: nn.ModuleDict) -> None:
    source, target = logits(1, requires_grad=True), logits(2, requires_grad=True)
    adv, _ = alignment(discriminators, maps(source), maps(target), EVERYWHERE)
    (adv["main"] + adv["aux"]).backward()
    assert gradients(discriminators) == [None] * len(list(discriminators.parameters()))
    assert all(source[head].grad is None for head in HEADS)
    for head in HEADS:
        gradient = target[head].grad
        assert gradient is not None and gradient.abs().sum() > 0


def test_discriminator_loss_gives_the_segmenter_no_gradient(discriminators: nn.ModuleDict) -> None:
    source, target = logits(1, requires_grad=True), logits(2, requires_grad=True)
    _, dis = alignment(discriminators, maps(source), maps(target), EVERYWHERE)
    (dis["main"] + dis["aux"]).backward()
    assert all(part[head].grad is None for part in (source, target) for head in HEADS)
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients(discriminators))


def test_one_backward_of_the_sum_equals_two_separate_steps(discriminators: nn.ModuleDict) -> None:
    """The engine differentiates all terms at once; every player must get what it would get alone."""
    source, together = logits(1), logits(2, requires_grad=True)
    adv, dis = alignment(discriminators, maps(source), maps(together), EVERYWHERE)
    sum([*adv.values(), *dis.values()]).backward()
    joint = [gradient.clone() for gradient in gradients(discriminators) if gradient is not None]
    discriminators.zero_grad()
    apart = logits(2, requires_grad=True)
    adv, dis = alignment(discriminators, maps(source), maps(apart), EVERYWHERE)
    sum(dis.values()).backward()
    sum(adv.values()).backward()
    for first, second in zip(joint, gradients(discriminators), strict=True):
        torch.testing.assert_close(first, second)
    for head in HEADS:
        torch.testing.assert_close(together[head].grad, apart[head].grad)


def test_each_head_meets_its_own_discriminator(discriminators: nn.ModuleDict) -> None:
    source, target = logits(1), logits(2, requires_grad=True)
    adv, dis = alignment(discriminators, maps(source), maps(target), EVERYWHERE)
    (adv["main"] + dis["main"]).backward()
    assert target["aux"].grad is None and gradients(discriminators["aux"]) == [None] * 10
    assert target["main"].grad is not None


def test_values(discriminators: nn.ModuleDict) -> None:
    source, target = logits(1), logits(2)
    adv, dis = alignment(discriminators, maps(source), maps(target), EVERYWHERE)
    for head in HEADS:
        scores = []
        for part in (source, target):
            prob = torch.exp(part[head]) / torch.exp(part[head]).sum(1, keepdim=True)
            scores.append(discriminators[head](-prob * torch.log(prob) / torch.log(torch.tensor(2.0).double())))
        on_source, on_target = scores
        torch.testing.assert_close(adv[head], F.softplus(on_target).mean())  # -log(1 - sigmoid): to pass for source
        expected = (F.softplus(on_source).mean() + F.softplus(-on_target).mean()) / 2  # each domain counts half
        torch.testing.assert_close(dis[head], expected)


def test_the_two_players_pull_apart(discriminators: nn.ModuleDict) -> None:
    """A descent of `adv` makes the target look more like the source, a descent of `dis` tells the two apart better."""
    source, target = maps(logits(1)), logits(2, requires_grad=True)
    adv, dis = alignment(discriminators, source, maps(target), EVERYWHERE)
    (adv["main"] + dis["main"]).backward()
    gradient = target["main"].grad
    assert gradient is not None
    with torch.no_grad():
        moved = target | {"main": target["main"] - 0.1 * gradient / gradient.norm()}
        verdicts = [discriminators["main"](maps(part)["main"]).mean() for part in (target, moved)]
        assert verdicts[1] < verdicts[0]  # a negative verdict says source
        for parameter in discriminators["main"].parameters():
            parameter -= 0.01 * parameter.grad
        assert alignment(discriminators, source, maps(target), EVERYWHERE)[1]["main"] < dis["main"]


def test_invalid_pixels_have_no_influence(discriminators: nn.ModuleDict) -> None:
    valid = torch.ones(2, 32, 32, dtype=torch.bool)
    valid[:, :, 20:] = False
    source, target = logits(1), logits(2, requires_grad=True)
    changed = {head: torch.where(valid[:, None], value, 5 * logits(3)[head]) for head, value in target.items()}
    first = alignment(discriminators, maps(source), maps(target, valid), valid)
    second = alignment(discriminators, maps(source), maps(changed, valid), valid)
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(one[head], other[head]) for head in HEADS)
    sum(first[0].values()).backward()
    for head in HEADS:
        gradient = target[head].grad
        assert gradient is not None
        assert gradient[..., 20:].abs().max() == 0 and gradient[..., :20].abs().max() > 0


class MarginDetector(nn.Module):
    """Tells a domain by its empty pixels alone: source where there are none, target where there are some."""

    def forward(self, view: Tensor) -> Tensor:
        empty = (view.sum(1, keepdim=True) == 0).flatten(1).any(1)
        return torch.where(empty, 20.0, -20.0)[:, None, None, None].expand(-1, 1, 4, 4)


@pytest.mark.parametrize("kind", [EntropyAlignment, SoftmaxAlignment, CategoryAlignment])
def test_margins_do_not_tell_the_domains_apart(kind: type[Alignment]) -> None:
    margin = EVERYWHERE.clone()
    margin[:, :, :10] = False
    source, target = DomainOutputs(logits(1), EVERYWHERE), DomainOutputs(logits(2), margin)
    weights = [torch.ones(3), torch.ones(3)]
    module = kind(2, lambda channels: MarginDetector(), {"main": 1.0, "aux": 1.0})
    terms = module(source, target, dict(zip(HEADS, weights, strict=True)), TrainingProgress(0, 10, 5, seed=0))
    # With one answer for both domains it is wrong about one of them.
    assert min(float(value) for name, (_, value) in terms.items() if name.startswith("dis_")) > 9


def test_a_position_counts_by_the_share_of_its_pixels_with_data(discriminators: nn.ModuleDict) -> None:
    seen = torch.tensor([[[0.0, 3.0], [5.0, 7.0]]])[None]  # what a discriminator says of four quarters of an image
    fixed = nn.ModuleDict({"main": nn.Identity()})
    fixed["main"].forward = lambda view: seen.expand(len(view), 1, 2, 2)  # type: ignore[method-assign]
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    valid[0, :2, :2], valid[0, 0, 2] = False, False  # a quarter without data, and one with three of four pixels
    view = {"main": torch.zeros(1, 2, 4, 4)}
    adv, _ = alignment(fixed, view, view, valid)
    expected = F.softplus(torch.tensor([3.0, 5.0, 7.0])) @ torch.tensor([0.75, 1.0, 1.0]) / 2.75
    torch.testing.assert_close(adv["main"], expected)


def test_entropy_map_of_certain_and_undecided_pixels() -> None:
    scores = torch.tensor([[0.0, 800.0], [0.0, 0.0]]).reshape(1, 2, 1, 2)
    shown = entropy_map(scores, torch.tensor([[[True, True]]]))
    torch.testing.assert_close(shown, torch.tensor([[0.5, 0.0], [0.5, 0.0]]).reshape(1, 2, 1, 2))
    assert entropy_map(scores, torch.tensor([[[False, False]]])).abs().max() == 0


def test_frozen_restores_after_an_exception_and_leaves_what_was_frozen() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    before = [parameter.requires_grad for parameter in module.parameters()]
    assert before == [False, False, True, True]
    with pytest.raises(ZeroDivisionError), frozen(module):
        assert not any(parameter.requires_grad for parameter in module.parameters())
        raise ZeroDivisionError
    assert [parameter.requires_grad for parameter in module.parameters()] == before


def test_a_map_that_is_refused_leaves_the_discriminators_trainable(discriminators: nn.ModuleDict) -> None:
    small = {head: torch.zeros(1, 2, 8, 8, dtype=torch.float64) for head in HEADS}
    with pytest.raises(ValueError, match="at least 32x32"):
        alignment(discriminators, small, small, EVERYWHERE[:1, :8, :8])
    assert all(parameter.requires_grad for parameter in discriminators.parameters())
