"""Learning rates at the steps and epochs for which the references' values are known."""

import pytest

from engine.schedule import asda_released, poly
from losses.inputs import TrainingProgress


def test_poly_of_advent() -> None:
    assert poly(2.5e-4, 1000, 250000) == pytest.approx(2.490998e-4, rel=1e-6)  # known answer 7


def test_poly_ends() -> None:
    assert poly(0.1, 0, 7) == 0.1
    assert poly(0.1, 7, 7) == 0
    assert poly(0.1, 5, 10) == pytest.approx(0.1 * 0.5**0.9)
    rates = [poly(0.1, step, 50) for step in range(51)]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == 51


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 6e-4), (5, 6.222e-4), (10, 6.889e-4), (14, 7.742e-4), (15, 1e-6), (24, 1.64e-4), (30, 2.5e-4)],
)
def test_released_schedule_of_stage_1(epoch: int, rate: float) -> None:
    assert asda_released(epoch, warmup_epochs=15) == pytest.approx(rate, rel=2e-3)  # known answer 19


@pytest.mark.parametrize(("epoch", "rate"), [(0, 2.5e-4), (15, 1e-6), (24, 1.64e-4)])
def test_released_schedule_of_stage_3(epoch: int, rate: float) -> None:
    assert asda_released(epoch, warmup_epochs=0) == pytest.approx(rate, rel=2e-3)


def test_progress() -> None:
    progress = TrainingProgress(step=25, steps=100, epoch_steps=10, seed=0)
    assert (progress.fraction, progress.epoch, progress.epochs) == (0.25, 2, 10)
    assert [progress._replace(step=step).epoch for step in (0, 9, 10, 99)] == [0, 0, 1, 9]
    assert progress._replace(steps=101).epochs == 11  # a started epoch counts
    assert progress._replace(steps=3, step=2).epochs == 1
