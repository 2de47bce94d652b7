"""The training loop, with a stage of two small layers whose every step can be followed."""

import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from config.schema import Config, LogConfig, OptimConfig, ReleasedConfig
from engine import loop as engine
from engine.build import device_of, loader_processes
from engine.layout import WARNINGS
from engine.loop import fit
from engine.schedule import asda_released, poly, set_rates, stage_length
from engine.stage import Batch, Losses
from losses.inputs import TrainingProgress
from utils.errors import ConfigError, Interrupted, TrainingError

CONFIG = Config(device="cpu", seed=3, log=LogConfig(every=1, pictures=3, checkpoint=2))


class StoppedError(Exception):
    """Stands for a kill."""


class FakeStream:
    """Batch i is a pure function of i."""

    def __init__(self, name: str) -> None:
        self.name = name

    def batches(self, batch: int, start: int, stop: int, *loader: int) -> Iterator[Any]:
        for i in range(start, stop):
            image = torch.randn(batch, 4, generator=torch.Generator().manual_seed(i))
            yield {"image": image, "name": [f"{self.name}_{i * batch + k}" for k in range(batch)]}

    def culprit(self, error: Exception) -> str | None:
        return None


@pytest.fixture(autouse=True)
def no_segmenter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake stage has no segmenter to draw or to write; it counts both. Fake batches are ready."""

    def picture(stage: FakeStage, batch: Batch) -> np.ndarray:
        stage.pictures += 1
        return np.zeros((4, 4, 3), np.uint8)

    def write(path: Path, stage: FakeStage, weights_metadata: object) -> None:
        path.write_text(str(stage.net.weight.tolist()))

    monkeypatch.setattr(engine, "prediction_grid", picture)
    monkeypatch.setattr(engine, "save_segmenter", write)
    monkeypatch.setattr(engine, "ready", lambda batch, device: batch)


class FakeStage:
    """Regression with noise from torch's global generator, and a discriminator beside it."""

    architecture = '{"layers": 1}'
    warmup_epochs, one_update_an_epoch = 15, False

    def __init__(self, stop_at: int | None = None, momentum: float = 0.9) -> None:
        torch.manual_seed(0)
        self.net, self.average, self.dis = nn.Linear(4, 1), nn.Linear(4, 1), nn.Linear(4, 1)
        self.networks: dict[str, nn.Module] = {"net": self.net, "average": self.average, "dis": self.dis}
        groups = [{"params": [self.net.weight], "lr": 0.1}, {"params": [self.net.bias], "lr": 0.4}]
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "segmenter": torch.optim.SGD(groups, momentum=momentum),
            "discriminators": torch.optim.Adam(self.dis.parameters(), lr=0.01),
        }
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["base_lr"] = group["lr"]
        self.stop_at = stop_at
        self.seen: list[torch.Tensor] = []  # the weight at the start of each step
        self.gradients: list[torch.Tensor] = []
        self.updates: list[int] = []
        self.pictures = 0

    def step(self, batch: Batch, progress: TrainingProgress) -> Losses:
        if progress.step == self.stop_at:
            raise StoppedError
        self.seen.append(self.net.weight.detach().clone())
        a, b = batch["a"]["image"], batch["b"]["image"]
        fit_loss = (self.net(a) - a.sum(1, keepdim=True) + 0.1 * torch.randn(len(a), 1)).square().mean()
        self.gradients.append(torch.autograd.grad(2 * fit_loss, self.net.weight, retain_graph=True)[0])
        return Losses({"fit": (2.0, fit_loss), "dis": (0.5, self.dis(b).square().mean())}, {"mean": a.mean()})

    def after_update(self, progress: TrainingProgress) -> None:
        self.updates.append(progress.step)
        with torch.no_grad():
            self.average.weight.lerp_(self.net.weight, 0.1)

    @property
    def exported(self) -> Any:
        return self

    def state(self) -> dict[str, torch.Tensor]:
        return {f"{n}.{k}": v.clone() for n, part in self.networks.items() for k, v in part.state_dict().items()}


def train(stage: Any, folder: Path, config: Config = CONFIG, steps: int = 8, **options: Any) -> list[dict[str, Any]]:
    """Run the engine and return the rows of metrics.jsonl."""
    folder.mkdir(exist_ok=True)
    streams = {name: FakeStream(name) for name in ("a", "b")}
    arguments = {"batch": 2, "steps": steps, "epoch_steps": 3, **options}
    fit(stage, streams, folder, config, **arguments)
    return rows(folder)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("stops", [[1], [4], [5], [3, 6, 7]])
def test_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, stops: list[int]) -> None:
    whole = FakeStage()
    train(whole, tmp_path / "whole")
    for stop in stops:
        with pytest.raises(StoppedError):
            train(FakeStage(stop_at=stop), tmp_path / "parts")
    last = FakeStage()
    train(last, tmp_path / "parts")
    assert len(last.seen) == 8 - stops[-1] // 2 * 2  # from the last checkpoint, not from the start
    assert equal(whole.state(), last.state())
    whole_rows, parts_rows = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts"))
    assert whole_rows == parts_rows and whole_rows.count(b"\n") == 8


def test_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    first, again = FakeStage(), FakeStage()
    train(first, tmp_path / "run")
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    train(again, tmp_path / "run")
    assert equal(first.state(), again.state()) and again.seen == []
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before


def test_another_seed_gives_another_run(tmp_path: Path) -> None:
    first, second = FakeStage(), FakeStage()
    train(first, tmp_path / "a")
    train(second, tmp_path / "b", replace(CONFIG, seed=4))
    assert not equal(first.state(), second.state())


class NotFinite(FakeStage):
    """At step 5 one term, or only its gradient, is not finite."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def step(self, batch: Batch, progress: TrainingProgress) -> Losses:
        losses = super().step(batch, progress)
        if progress.step < 5:
            return losses
        self.before = self.state()
        weight, value = losses.terms["fit"]
        bad = {"nan": value * float("nan"), "inf": value / 0, "gradient": (value * 0).sqrt()}[self.kind]
        return Losses(losses.terms | {"fit": (weight, bad)}, losses.stats)


KINDS = [("nan", "fit = nan"), ("inf", "fit = inf"), ("gradient", "gradient norm of segmenter = nan")]


@pytest.mark.parametrize(("kind", "found"), KINDS)
def test_not_finite_stops_before_the_update(tmp_path: Path, kind: str, found: str) -> None:
    stage = NotFinite(kind)
    with pytest.raises(TrainingError) as caught:
        train(stage, tmp_path / "run")
    message = str(caught.value)
    assert message.startswith("step 5: ") and found in message and "expected finite" in message
    assert ("fit = " in message) == (kind != "gradient") and "dis = " not in message
    assert "a: a_10, a_11; b: b_10, b_11" in message and "optim.lr" in message
    assert equal(stage.state(), stage.before)
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4, 5]
    sound = FakeStage()
    train(sound, tmp_path / "run")  # goes on from step 4
    assert len(sound.seen) == 4


@pytest.mark.parametrize("name", ["segmenter", "discriminators"])
def test_optimizer_that_is_not_finite_stops_before_the_update(tmp_path: Path, name: str) -> None:
    class Overflow(FakeStage):
        def step(self, batch: Batch, progress: TrainingProgress) -> Losses:
            if progress.step == 5:
                next(iter(self.optimizers[name].state.values()))[
                    "momentum_buffer" if name == "segmenter" else "exp_avg_sq"
                ][0] = float("inf")
                self.before = self.state()
            return super().step(batch, progress)

    stage = Overflow()
    with pytest.raises(TrainingError, match=f"step 5: norm of the state of the optimizer of {name} = inf"):
        train(stage, tmp_path / "run")
    assert equal(stage.state(), stage.before)


class Skipping(NotFinite):
    """Three bad steps, and a buffer that every forward spoils, as batch normalisation's statistics are."""

    def __init__(self, kind: str, stop_at: int | None = None) -> None:
        super().__init__(kind)
        self.stop_at = stop_at
        self.net.register_buffer("seen_so_far", torch.zeros(()))

    def step(self, batch: Batch, progress: TrainingProgress) -> Losses:
        losses = super().step(batch, progress)
        self.net.seen_so_far += 1 if progress.step < 5 else float("nan")
        return losses


@pytest.mark.parametrize(("kind", "found"), KINDS)
def test_so_many_steps_are_skipped_and_no_more(
    tmp_path: Path, kind: str, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    allow = replace(CONFIG, optim=OptimConfig(skip_not_finite=3))
    stage = Skipping(kind)
    written = train(stage, tmp_path / "run", allow, steps=8)
    assert "".join(capsys.readouterr()).count(found) == 3
    assert equal(stage.state(), stage.before) and float(stage.net.seen_so_far) == 5
    assert stage.updates == [0, 1, 2, 3, 4] and [row["step"] for row in written] == [1, 2, 3, 4, 5]
    assert (tmp_path / "run" / WARNINGS).read_text() == "3 of 8 steps were skipped: their numbers were not finite\n"

    with pytest.raises(StoppedError):
        train(Skipping(kind, stop_at=7), tmp_path / "parts", allow, steps=8)
    with pytest.raises(TrainingError, match=f"step 7: {found}"):  # one was skipped before the checkpoint of step 6
        train(Skipping(kind), tmp_path / "parts", replace(CONFIG, optim=OptimConfig(skip_not_finite=2)), steps=8)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_the_step_and_write_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    class Signalled(FakeStage):
        def step(self, batch: Batch, progress: TrainingProgress) -> Losses:
            if progress.step == 4:
                os.kill(os.getpid(), number)
            return super().step(batch, progress)

    handlers = [signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Interrupted, match="stopped after step 5 of 8") as caught:
        train(Signalled(), tmp_path / "run")
    assert caught.value.signal == number
    assert [signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)] == handlers
    whole, last = FakeStage(), FakeStage()
    train(last, tmp_path / "run")
    assert len(last.seen) == 3
    train(whole, tmp_path / "whole")
    assert equal(whole.state(), last.state()) and rows(tmp_path / "run") == rows(tmp_path / "whole")


class Loaders(FakeStream):
    """A loader process dies at the third batch."""

    def batches(self, *given: Any) -> Iterator[Any]:
        for number, batch in enumerate(super().batches(*given)):
            if number == 2:
                if self.name == "signalled":
                    os.kill(os.getpid(), signal.SIGTERM)
                raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
            yield batch

    def culprit(self, error: Exception) -> str | None:
        return "a_4.png" if "pid 7" in str(error) else None


def test_loader_faults_name_the_image_and_the_settings(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    arguments = {"batch": 2, "steps": 8, "epoch_steps": 3}
    with pytest.raises(TrainingError) as caught:
        fit(FakeStage(), {"a": Loaders("a"), "b": FakeStream("b")}, tmp_path / "run", CONFIG, **arguments)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'run'}: a loader process of the a images died or gave nothing for 300 s ")
    assert "(DataLoader worker (pid 7) is killed by signal: Killed.). It was at a_4.png. " in message
    with pytest.raises(Interrupted) as stopped:  # where loaders get the signal too, that is what happened
        fit(FakeStage(), {"a": Loaders("signalled"), "b": FakeStream("b")}, tmp_path / "run", CONFIG, **arguments)
    assert stopped.value.signal == signal.SIGTERM


def test_the_same_signal_again_stops_at_once(tmp_path: Path) -> None:
    class Signalled(FakeStage):
        def step(self, batch: Batch, progress: TrainingProgress) -> Losses:
            if progress.step == 4:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
                raise AssertionError("not reached")
            return super().step(batch, progress)

    with pytest.raises(KeyboardInterrupt) as caught:
        train(Signalled(), tmp_path / "run")
    assert not isinstance(caught.value, Interrupted)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate"),
        MemoryError(),
    ],
)
def test_out_of_memory_names_stage_batch_crop_peak_and_settings(tmp_path: Path, error: Exception) -> None:
    class Large(FakeStage):
        def step(self, batch: Batch, progress: TrainingProgress) -> Losses:
            raise error

    with pytest.raises(TrainingError) as caught:
        train(Large(), tmp_path / "intra")
    message = str(caught.value)
    assert f"{tmp_path / 'intra'}: cpu has not enough memory for intra.batch 2 of a and b images" in message
    assert "data.size 256" in message and re.search(r"peak [\d,]{3,} MiB", message)
    assert "Raise speed.pieces, lower intra.batch or data.size" in message


def test_other_errors_of_torch_are_left_as_they_are(tmp_path: Path) -> None:
    class Wrong(FakeStage):
        def step(self, batch: Batch, progress: TrainingProgress) -> Losses:
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        train(Wrong(), tmp_path / "run")


def test_weights_that_are_not_finite_reach_no_checkpoint(tmp_path: Path) -> None:
    class Diverged(FakeStage):
        def after_update(self, progress: TrainingProgress) -> None:
            if progress.step == 5:
                with torch.no_grad():
                    self.average.weight[0, 1] = float("nan")

    with pytest.raises(TrainingError, match=r"after step 6: networks\.average\.weight holds NaN"):
        train(Diverged(), tmp_path / "run")
    sound = FakeStage()
    train(sound, tmp_path / "run")
    assert len(sound.seen) == 4  # from step 4


def test_one_update_an_epoch_uses_its_last_batch_alone(tmp_path: Path) -> None:
    stage = FakeStage(momentum=0)
    stage.one_update_an_epoch = True
    train(stage, tmp_path / "run", steps=7)
    assert stage.updates == [2, 5]
    w = stage.seen
    assert torch.equal(w[0], w[2]) and not torch.equal(w[2], w[3])
    assert torch.equal(w[3], w[5]) and not torch.equal(w[5], w[6])
    torch.testing.assert_close(w[3], w[2] - poly(0.1, 2, 7) * stage.gradients[2])
    torch.testing.assert_close(w[6], w[5] - poly(0.1, 5, 7) * stage.gradients[5])
    assert torch.equal(stage.net.weight, w[6])  # the seventh step alone makes no update


def test_every_step_updates_by_default(tmp_path: Path) -> None:
    stage = FakeStage(momentum=0)
    train(stage, tmp_path / "run", steps=4)
    assert stage.updates == [0, 1, 2, 3]
    for step in range(3):
        expected = stage.seen[step] - poly(0.1, step, 4) * stage.gradients[step]
        torch.testing.assert_close(stage.seen[step + 1], expected)


def _rates(stage: FakeStage) -> list[float]:
    return [group["lr"] for optimizer in stage.optimizers.values() for group in optimizer.param_groups]


def test_poly_rate_of_every_group() -> None:
    stage = FakeStage()
    for step in (0, 30, 99):  # not compounding
        rate = set_rates(stage.optimizers, TrainingProgress(step, 100, 10, 0), CONFIG, 15)
        factor = (1 - step / 100) ** 0.9
        assert _rates(stage) == pytest.approx([0.1 * factor, 0.4 * factor, 0.01 * factor])
        assert rate == _rates(stage)[0]


def test_released_rate_is_one_for_the_segmenter_and_leaves_the_discriminators() -> None:
    stage, config = FakeStage(), replace(CONFIG, released=ReleasedConfig(schedule=True))
    for warmup, step in ((15, 59), (15, 200), (0, 200)):
        rate = asda_released(step // 10, warmup)
        assert set_rates(stage.optimizers, TrainingProgress(step, 500, 10, 0), config, warmup) == rate
        assert _rates(stage) == [rate, rate, 0.01]


def test_rows_hold_raw_and_weighted_terms_rates_and_norms(tmp_path: Path) -> None:
    stage = FakeStage()
    written = train(stage, tmp_path / "run", steps=4)
    assert [row["step"] for row in written] == [1, 2, 3, 4]
    for step, row in enumerate(written):
        assert row["lr"] == poly(0.1, step, 4)
        assert row["weighted/fit"] == 2 * row["raw/fit"] and row["weighted/dis"] == 0.5 * row["raw/dis"]
        assert row["loss"] == pytest.approx(row["weighted/fit"] + row["weighted/dis"])
        assert row["grad_norm/segmenter"] >= float(stage.gradients[step].norm())  # the bias comes on top
        assert row["stats/mean"] == pytest.approx(
            float(torch.randn(2, 4, generator=torch.Generator().manual_seed(step)).mean()), abs=1e-6
        )
    timing = [json.loads(line) for line in (tmp_path / "run/timing.jsonl").read_text().splitlines()]
    assert len(timing) == 4 and all(row["images_per_s"] > 0 and row["data_time"] >= 0 for row in timing)


def test_intervals_of_rows_and_pictures_include_the_end(tmp_path: Path) -> None:
    stage = FakeStage()
    config = replace(CONFIG, log=LogConfig(every=3, pictures=4, checkpoint=100))
    assert [row["step"] for row in train(stage, tmp_path / "run", config, steps=7)] == [3, 6, 7]
    assert stage.pictures == 2  # after 4 and 7
    assert (tmp_path / "run/checkpoint.pt").exists()


def test_stage_length() -> None:
    assert stage_length(100, None, images=10, batch=4) == (100, 3)
    assert stage_length(100, 2, images=10, batch=4) == (6, 3)
    assert stage_length(100, 2.5, images=16, batch=4) == (10, 4)
    assert stage_length(100, 0.01, images=10, batch=4) == (1, 3)
    assert stage_length(100, None, images=3, batch=8) == (100, 1)


@pytest.mark.parametrize("device", ["gpu", "meta:99:1", "cpux"])
def test_an_unknown_device_is_named(device: str) -> None:
    with pytest.raises(ConfigError, match=f"device is '{device}'.*give auto or cpu"):
        device_of(replace(Config(), device=device))


def test_snapshots_are_the_networks_of_their_steps(tmp_path: Path) -> None:
    stage = FakeStage()
    train(stage, tmp_path, replace(CONFIG, log=LogConfig(every=1, pictures=3, checkpoint=2, snapshots=3)), steps=9)
    found = {path.stem: path.read_text() for path in sorted((tmp_path / "snapshots").iterdir())}
    assert found == {f"step_{step:08d}": str(stage.seen[step].tolist()) for step in (3, 6)}  # the last is the result


def test_a_term_that_is_zero_until_an_interruption_and_after_it_is_reported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Silent(FakeStage):
        def step(self, batch: Batch, progress: TrainingProgress) -> Losses:
            losses = super().step(batch, progress)
            zero = 0 * losses.terms["fit"][1]
            once = losses.terms["fit"][1] * (progress.step == 0)
            return Losses({**losses.terms, "never": (1.0, zero), "once": (1.0, once), "off": (0.0, zero)}, losses.stats)

    with pytest.raises(StoppedError):
        train(Silent(stop_at=5), tmp_path)
    train(Silent(), tmp_path)
    text = (tmp_path / WARNINGS).read_text()
    assert text == "term never was exactly 0 on each of 8 steps: it trained nothing\n"
    shown = capfd.readouterr()
    assert f"WARNING: {text.strip()}" in shown.out + shown.err
    train(FakeStage(), tmp_path / "sound")
    assert not (tmp_path / "sound" / WARNINGS).exists()


@pytest.mark.parametrize(
    ("usable", "sharing", "device", "workers"),
    [
        *((1, 1, "cpu", 0), (7, 1, "cpu", 0), (8, 1, "cpu", 1), (16, 8, "cpu", 0), (256, 1, "cpu", 8)),
        *((1, 1, "cuda", 0), (2, 1, "cuda", 1), (16, 1, "cuda", 8), (32, 4, "cuda", 4), (256, 4, "cuda", 8)),
    ],
)
def test_as_many_loader_processes_as_help(
    usable: int, sharing: int, device: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(usable), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(sharing))
    assert loader_processes(CONFIG, torch.device(device)) == workers
    given = replace(CONFIG, data=replace(CONFIG.data, workers=3))
    assert loader_processes(given, torch.device(device)) == 3


def test_the_loaders_are_told_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches, told = FakeStream.batches, []

    def listening(stream: FakeStream, batch: int, start: int, stop: int, *loader: int) -> Iterator[Any]:
        told.append(loader)
        return batches(stream, batch, start, stop, *loader)

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(24), raising=False)
    monkeypatch.setattr(FakeStream, "batches", listening)
    train(FakeStage(), tmp_path, steps=1)
    assert told == [(3, CONFIG.data.timeout, 0, 1)] * 2  # of two streams
