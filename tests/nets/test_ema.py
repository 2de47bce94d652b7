from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nets.ema import EMA


def network() -> Any:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def filled(value: float) -> Any:
    module = nn.Linear(1, 1)
    nn.init.constant_(module.weight, value)
    return module


def test_known_answer_25_updates() -> None:
    ema: Any = EMA(filled(1.0).double(), decay=0.995, ramp=False)
    for step in range(25):
        ema.update(filled(0.0).double(), step)
    assert ema.model.weight.item() == pytest.approx(0.995**25, abs=1e-12)
    assert ema.model.weight.item() == pytest.approx(0.88222024, abs=5e-9)


@given(st.integers(0, 5000), st.floats(0.0, 0.9999), st.booleans(), st.integers(0, 100))
def test_equal_networks_are_a_fixed_point_to_the_bit(step: int, decay: float, ramp: bool, seed: int) -> None:
    torch.manual_seed(seed)
    trainee = network()
    trainee(torch.randn(4, 3, 8, 8))
    ema: Any = EMA(trainee, decay, ramp)
    ema.update(trainee, step)
    for name, value in trainee.state_dict().items():
        assert torch.equal(ema.model.state_dict()[name], value), name


def test_ramp() -> None:
    ema: Any = EMA(network(), decay=0.995)
    assert [ema.decay_at(step) for step in (0, 1, 3, 198, 199, 10_000)] == [0.0, 0.5, 0.75, 1 - 1 / 199, 0.995, 0.995]
    assert EMA(network(), decay=0.995, ramp=False).decay_at(0) == 0.995


def test_first_ramped_update_copies_and_early_ones_average() -> None:
    ema: Any = EMA(filled(5.0))
    for step, value in enumerate([1.0, 2.0, 6.0]):
        ema.update(filled(value), step)
    assert ema.model.weight.item() == pytest.approx(3.0)


def test_statistics_are_averaged_and_counters_copied() -> None:
    trainee = network()
    ema: Any = EMA(trainee, decay=0.5, ramp=False)
    trainee(torch.randn(4, 3, 8, 8) + 3)
    ema.update(trainee, 0)
    torch.testing.assert_close(ema.model[1].running_mean, trainee[1].running_mean / 2)
    assert ema.model[1].num_batches_tracked == 1


def test_copy_is_frozen_separate_and_stays_in_eval_mode() -> None:
    trainee = network()
    ema: Any = EMA(trainee)
    nn.ModuleList([ema]).train()
    assert not any(module.training for module in ema.modules())
    assert not any(parameter.requires_grad for parameter in ema.parameters())
    assert trainee.training
    assert all(parameter.requires_grad for parameter in trainee.parameters())
    before = ema.model[0].weight.clone()
    nn.init.zeros_(trainee[0].weight)
    assert torch.equal(ema.model[0].weight, before)
    assert torch.equal(ema(torch.ones(1, 3, 8, 8)), ema.model(torch.ones(1, 3, 8, 8)))


def test_other_networks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"same state dict.*0\.bias"):
        EMA(network()).update(nn.ModuleDict({"module": network()}), 0)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_decay_outside_its_range(decay: float) -> None:
    with pytest.raises(ValueError, match="decay"):
        EMA(network(), decay)
