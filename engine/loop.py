"""The one training loop of both stages."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from config.schema import Config
from datasets.samples import EndlessSamples
from engine import processes
from engine.batches import ready
from engine.build import device_of, loader_processes
from engine.checkpoint import resume, save_checkpoint
from engine.forward import ForwardMode, forward_mode
from engine.layout import SNAPSHOTS, WARNINGS
from engine.log import Logger, prediction_grid
from engine.memory import peak_mib, ran_out, reuse_memory
from engine.schedule import set_rates
from engine.signals import CONTINUES, deferred
from engine.stage import Batch, Losses, TrainingStage
from losses.inputs import TrainingProgress
from nets.discriminator import Discriminator
from nets.segmenter import Segmenter
from nets.weights import save_segmenter
from utils.errors import ConfigError, Interrupted, TrainingError
from utils.files import write_text
from utils.output import progress_bar

Streams = Mapping[str, EndlessSamples]  # by name
EARLY = 50  # steps after which a term that was always 0 is reported for the first time


class Ledger(nn.Module):
    """Counts the steps on which a term, or a share of accepted pseudo-labels, was not exactly 0, and the skipped steps.

    A term that is 0 on every step trains nothing, and nobody would notice. The counts are part of the checkpoint.
    """

    active: Tensor
    skipped: Tensor

    def __init__(self, capacity: int = 64) -> None:
        super().__init__()
        self.register_buffer("active", torch.zeros(capacity, dtype=torch.int64))
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64))
        self.names: list[str] = []

    @torch.no_grad()
    def count(self, losses: Losses) -> None:
        watched = {f"term {name}": value for name, (weight, value) in losses.terms.items() if weight}
        stats = losses.stats.items()
        watched |= {name: value for name, value in stats if isinstance(value, Tensor) and name.startswith("accepted")}
        self.names = list(watched)
        self.active[: len(watched)] += torch.stack([value.detach() for value in watched.values()]) != 0

    def silent(self, steps: int) -> list[str]:
        """A sentence for each name that was 0 on all of `steps` steps, and one for skipped steps."""
        skipped = int(self.skipped)
        found = [f"{skipped} of {steps} steps were skipped: their numbers were not finite"] if skipped else []
        for name, count in zip(self.names, self.active.tolist(), strict=False):
            if count == 0:
                why = "it trained nothing" if name.startswith("term ") else "every pseudo-label was ignored"
                found.append(f"{name} was exactly 0 on each of {steps} steps: {why}")
        return found


def fit(
    stage: TrainingStage,
    streams: Streams,
    folder: Path,
    config: Config,
    *,
    batch: int,
    steps: int,
    epoch_steps: int,
    weights_metadata: Mapping[str, str] | None = None,
) -> None:
    """Train a stage to its last step, from its checkpoint if there is one.

    The result is a pure function of configuration and data: a run that was killed and started again ends with the
    same bytes, because samples, learning rates and random numbers follow from the seed and the step alone. On CUDA
    this holds up to operations that have no deterministic kernel, such as the gradient of bilinear resizing.

    Args:
        folder: receives checkpoint.pt, metrics.jsonl, timing.jsonl and tensorboard/.
        batch: samples per step and stream.
        weights_metadata: what the weights files say of the images; see `engine.domains.data_record`.

    Several processes (`engine.processes`) each load and compute their share of every batch, and the first one writes.

    Raises:
        TrainingError: a loss, gradient or optimizer is not finite (nothing was updated in that step), memory ran out,
            or a loader process died or hangs.
        Interrupted: SIGTERM or Ctrl-C came; the step was finished and a checkpoint written.
    """
    device = device_of(config)
    ledger = Ledger().to(device)
    networks = {**stage.networks, "ledger": ledger}
    about = {"architecture": stage.exported.architecture, **(weights_metadata or {})}
    mode = prepared(stage, device, config, batch, folder)
    with processes.first_alone():
        start = resume(folder, networks, stage.optimizers, about)
    loader = loader_processes(config, device), config.data.timeout, processes.rank(), processes.size()
    sources = {name: stream.batches(batch, start, steps, *loader) for name, stream in streams.items()}
    allowed, first = config.optim.skip_not_finite, processes.is_first()
    bar_style: dict[str, Any] = {"desc": folder.name, "unit": "step", "disable": not first}
    with (
        Logger(folder, start) if first else nullcontext() as log,
        progress_bar(total=steps, initial=start, **bar_style) as bar,
        deferred() as signals,
        _explained(streams, folder, config, batch, device, signals),
        forward_mode(mode),
    ):
        since, data_time, last_logged = time.perf_counter(), 0.0, start
        for step in range(start, steps):
            seed = int(np.random.SeedSequence([config.seed, step]).generate_state(1, np.uint32)[0])
            progress = TrainingProgress(step, steps, epoch_steps, seed)
            asked = time.perf_counter()
            batches = {name: ready(next(source), device) for name, source in sources.items()}
            data_time += time.perf_counter() - asked

            torch.manual_seed(seed)
            lr = set_rates(stage.optimizers, progress, config, stage.warmup_epochs)
            for optimizer in stage.optimizers.values():
                optimizer.zero_grad(set_to_none=True)
            buffers = nn.ModuleDict(stage.networks).buffers() if allowed else ()
            before = [(buffer, buffer.clone()) for buffer in buffers]
            losses = stage.step(batches, progress)
            torch.stack([weight * value for weight, value in losses.terms.values()]).sum().backward()
            processes.add_up(chain.from_iterable(map(_gradients, stage.optimizers.values())))
            norms = {name: gradient_norm(optimizer) for name, optimizer in stage.optimizers.items()}
            if fault := _not_finite(losses, norms, stage, batches, step):
                ledger.skipped += 1
                if ledger.skipped > allowed:
                    raise TrainingError(f"{fault} Look at these files, or lower optim.lr; {CONTINUES}")
                bar.write(f"WARNING: {fault} The step is skipped")
                for buffer, value in before:
                    buffer.copy_(value)
            else:
                if (step + 1) % (epoch_steps if stage.one_update_an_epoch else 1) == 0:
                    for optimizer in stage.optimizers.values():
                        optimizer.step()
                    stage.after_update(progress)
                ledger.count(losses)

            done = step + 1
            bar.update()
            if done == EARLY < steps:
                _warn(bar, ledger.silent(done))
            stop = [number for noted in processes.gathered_objects(signals[:1]) for number in noted]
            if log and not fault and (done % config.log.every == 0 or done == steps):
                elapsed, count = time.perf_counter() - since, done - last_logged
                metrics, speed = _row(losses, norms, lr), count * batch * len(streams) / elapsed
                timing = {"data_time": data_time / count, "step_time": elapsed / count, "images_per_s": speed}
                log.scalars(done, metrics, {**timing, "peak_mib": peak_mib(device)})
                bar.set_postfix(loss=f"{metrics['loss']:.3f}", lr=f"{lr:.1e}", data=f"{timing['data_time']:.2f}s")
                since, data_time, last_logged = time.perf_counter(), 0.0, done
            if log and (done % config.log.pictures == 0 or done == steps):
                log.picture(done, "predictions", prediction_grid(stage.exported, batches))
            if log and config.log.snapshots and done % config.log.snapshots == 0 and done < steps:
                (folder / SNAPSHOTS).mkdir(exist_ok=True)
                save_segmenter(folder / SNAPSHOTS / f"step_{done:08d}.safetensors", stage.exported, weights_metadata)
            if log and done == steps and (warnings := ledger.silent(steps)):
                _warn(bar, warnings)
                write_text(folder / WARNINGS, "".join(f"{warning}\n" for warning in warnings))
            if log and (done % config.log.checkpoint == 0 or done == steps or stop):
                save_checkpoint(folder, done, networks, stage.optimizers, about)
            if stop:
                processes.barrier()  # the first one has to finish its checkpoint
                raise Interrupted(f"{folder}: stopped after step {done} of {steps}; {CONTINUES}", stop[0])


def prepared(stage: TrainingStage, device: torch.device, config: Config, batch: int, folder: Path) -> ForwardMode:
    """Set PyTorch and the networks of a stage up for `config.speed`, and say how batches pass them.

    Raises:
        ConfigError: the batch cannot be divided, or the device cannot do it.
    """
    if device.type == "cpu":
        reuse_memory()
    speed, cuda, parts = config.speed, device.type == "cuda", processes.size() * config.speed.pieces
    if batch % parts:
        raise ConfigError(
            f"{_section(folder)}.batch is {batch}, the images of a step over all processes, and cannot be divided into "
            f"{parts} parts ({processes.size()} processes, speed.pieces {speed.pieces}); give a multiple of {parts}"
        )
    if speed.compile and processes.size() > 1:
        raise ConfigError("speed.compile is true: several processes share batch statistics uncompiled; set it to false")
    torch.backends.cudnn.benchmark = cuda and not speed.deterministic
    torch.backends.cudnn.deterministic = not torch.backends.cudnn.benchmark
    if cuda and speed.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    able = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    half = speed.precision == "bfloat16" or (speed.precision == "auto" and able)
    networks = nn.ModuleList(part for part in vars(stage).values() if isinstance(part, nn.Module))  # frozen ones too
    networks.to(memory_format=torch.channels_last)  # convolutions are faster, on CPUs too
    for module in networks.modules():
        if speed.compile and isinstance(module, Segmenter):
            module.compile()
        if speed.compile and isinstance(module, Discriminator):
            module.layers.compile()
    return ForwardMode(torch.bfloat16 if half else None, speed.pieces)


def _section(folder: Path) -> str:
    """Where the configuration has the settings of the stage that a folder belongs to."""
    return "intra" if folder.name == "intra" else "teacher"


@contextmanager
def _explained(
    streams: Streams, folder: Path, config: Config, batch: int, device: torch.device, noted: Sequence[int]
) -> Iterator[None]:
    """Within it, PyTorch's errors of memory and of loader processes say which setting or file to look at."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if ran_out(error):
            section = _section(folder)
            raise TrainingError(
                f"{folder}: {device} has not enough memory for {section}.batch {batch} of "
                f"{' and '.join(streams)} images with data.size {config.data.size} (peak {peak_mib(device):,.0f} MiB). "
                f"Raise speed.pieces, lower {section}.batch or data.size, take a smaller net.backbone, or a larger "
                "net.output_stride; with another --out, since these decide the result"
            ) from error
        for name, stream in streams.items():
            if (culprit := stream.culprit(error)) is None:
                continue
            if noted:  # the loaders were asked to stop as well
                raise Interrupted(f"{folder}: stopped within a step; {CONTINUES}", noted[0]) from None
            raise TrainingError(
                f"{folder}: a loader process of the {name} images died or gave nothing for {config.data.timeout} s "
                f"({str(error).splitlines()[0]}). It was at {culprit}. Look at this file and at the memory that is "
                f"free, or set data.workers to 0; {CONTINUES}"
            ) from error
        raise


def _warn(bar: tqdm, warnings: Sequence[str]) -> None:
    for warning in warnings:
        bar.write(f"\n{'!' * 78}\nWARNING: {warning}\n{'!' * 78}\n")


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """Euclidean norm of all gradients that an optimiser is about to apply."""
    return torch.nn.utils.get_total_norm(_gradients(optimizer))


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


@torch.no_grad()
def _row(losses: Losses, norms: Mapping[str, Tensor], lr: float) -> dict[str, float]:
    raw = {name: value.item() for name, (_, value) in losses.terms.items()}
    weighted = {name: weight * raw[name] for name, (weight, _) in losses.terms.items()}
    stats = {name: (stat if isinstance(stat, Tensor) else stat()).item() for name, stat in losses.stats.items()}
    norm = {name: norm.item() for name, norm in norms.items()}
    groups = {"raw": raw, "weighted": weighted, "stats": stats, "grad_norm": norm}
    row = {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}
    return {"lr": lr, "loss": sum(weighted.values()), **row}


def _not_finite(losses: Losses, norms: Mapping[str, Tensor], stage: TrainingStage, batches: Batch, step: int) -> str:
    """A sentence that names step, terms and files if a loss, a gradient or an optimizer's state is not finite."""
    values = {name: value.detach() for name, (_, value) in losses.terms.items()}
    values |= {f"gradient norm of {name}": norm for name, norm in norms.items()}
    for name, optimizer in stage.optimizers.items():
        # Without Adam's count of steps, which is on the CPU beside a GPU as well.
        slots = chain.from_iterable(state.items() for state in optimizer.state.values())
        if state := [part for slot, part in slots if isinstance(part, Tensor) and slot != "step"]:
            values[f"norm of the state of the optimizer of {name}"] = torch.nn.utils.get_total_norm(state)
    if bool(torch.isfinite(torch.stack([value.float() for value in values.values()])).all()):
        return ""
    faults = ", ".join(f"{name} = {float(value)}" for name, value in values.items() if not torch.isfinite(value))
    files = "; ".join(f"{stream}: {', '.join(part['name'])}" for stream, part in batches.items())
    return f"step {step}: {faults}, expected finite numbers. Nothing was updated. The batch: {files}."
