"""Every trainable parameter stands in one group, once, at the rate that its part asks for."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from config.schema import OptimConfig
from engine.optim import discriminator_optimizer, segmenter_optimizer
from nets.segmenter import Segmenter

OPTIM = OptimConfig(lr=0.02, head_factor=5, weight_decay=0.003)


@pytest.fixture(scope="module", params=[False, True], ids=["free", "frozen_bn"])
def segmenter(request: pytest.FixtureRequest) -> Segmenter:
    return Segmenter("mobilenetv3_small_050", freeze_bn=request.param)


def test_groups(segmenter: Segmenter) -> None:
    optimizer = segmenter_optimizer(segmenter, OPTIM)
    backbone, heads = optimizer.param_groups
    listed = [id(p) for group in (backbone, heads) for p in group["params"]]
    trainable = {id(p) for p in segmenter.parameters() if p.requires_grad}
    assert len(listed) == len(set(listed)) and set(listed) == trainable
    of_heads = trainable - {id(p) for p in segmenter.backbone.parameters()}
    assert {id(p) for p in heads["params"]} == of_heads
    assert (backbone["lr"], heads["lr"]) == (0.02, 0.1)
    assert all(group["momentum"] == 0.9 and group["weight_decay"] == 0.003 for group in (backbone, heads))


def test_adamw_has_the_same_groups_and_rates(segmenter: Segmenter) -> None:
    sgd = segmenter_optimizer(segmenter, OPTIM)
    optimizer = segmenter_optimizer(segmenter, replace(OPTIM, algorithm="adamw"), factor=0.5)
    assert isinstance(optimizer, torch.optim.AdamW)
    for ours, other, lr in zip(optimizer.param_groups, sgd.param_groups, (0.01, 0.05), strict=True):
        assert [id(p) for p in ours["params"]] == [id(p) for p in other["params"]]
        assert (ours["lr"], ours["base_lr"], ours["weight_decay"]) == (lr, lr, 0.003)


def test_extra_parameters_learn_at_the_heads_rate(segmenter: Segmenter) -> None:
    extra = nn.Linear(3, 2)
    plain = segmenter_optimizer(segmenter, OPTIM)
    optimizer = segmenter_optimizer(segmenter, OPTIM, extra.parameters(), factor=0.5)
    backbone, heads = optimizer.param_groups
    assert [id(p) for p in heads["params"][-2:]] == [id(extra.weight), id(extra.bias)]
    assert len(heads["params"]) == len(plain.param_groups[1]["params"]) + 2
    assert (backbone["lr"], heads["lr"]) == (0.01, 0.05)
    assert (backbone["base_lr"], heads["base_lr"]) == (0.01, 0.05)  # what the schedule starts from


def test_discriminators() -> None:
    discriminators = nn.ModuleDict({"main": nn.Linear(2, 1), "aux": nn.Linear(2, 1)})
    optim = OptimConfig(discriminator_lr=3e-4)
    optimizer = discriminator_optimizer(discriminators, optim)
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.Adam)
    assert {id(p) for p in group["params"]} == {id(p) for p in discriminators.parameters()}
    assert (group["lr"], group["base_lr"], group["betas"]) == (3e-4, 3e-4, (0.9, 0.99))
