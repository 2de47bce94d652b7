"""Every method on every pair of domains with every seed, under one protocol, in one table.

    python compare.py --config configs/compare/demo.yaml
    python compare.py --config configs/compare/demo.yaml --workers 2 --threads 1 --only asda,advent

A run of one method is what bash.sh does with its configuration; a stage that another method of the same pair and seed
has finished with the same settings is copied from there. Started again, it continues: nothing finished is done twice.
Writes OUT/PAIR/seedS/METHOD/ (the runs) and OUT/NAME/: table.{md,csv,tex}, results.json, plot_*.png.
"""

from __future__ import annotations

if __name__ == "__main__":
    from config.schema import load_compare_config
    from engine.cli import configure

    CONFIG = configure(__doc__, load_compare_config)

import contextlib
import json
import math
import multiprocessing
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from tqdm import tqdm

from comparison.averages import grouped
from comparison.table import Comparison, Result, read_published, write
from config.schema import CompareConfig, Config, flatten, load_config, to_yaml
from datasets.files import Item
from datasets.readers import READERS
from engine.cli import run
from engine.domains import expected_images, listed, training_images
from engine.layout import SNAPSHOTS, read_warnings
from engine.lock import LOCK, one_writer
from engine.loop import device_of, intra_length, stage_length
from engine.memory import memory_explained
from engine.run import Kind, bound_settings, differences, make_generated, uses_split
from nets.weights import load_segmenter
from report.evaluation import Domain, Tally, survey
from report.metrics import scores
from report.protocol import HELD_BACK, LESS_MEMORY, TRANSDUCTIVE, evaluation_domains
from split_entropy import split_entropy
from train_intra import train_intra
from train_teacher import train_teacher
from utils.errors import ConfigError, EvaluationError
from utils.files import write_text
from utils.records import read_json, reading

METHODS = Path(__file__).resolve().parent / "configs" / "methods"
RESULT = "result.json"
NOT_SCORED = (
    "device",
    "out",
    "log.",
    "data.workers",
    "data.timeout",
    *(f"eval.{key}" for key in ("parts", "pictures", "cam_layer", "tsne")),
)


class Job(NamedTuple):
    """One method on one pair with one seed.

    `choice` says how it is scored: which checkpoint and, for an oracle without held-back images, how many folds.
    `after` is the run from which it will take its finished stage 1.
    """

    pair: str
    method: str
    config: Config
    choice: dict[str, Any]
    after: Path | None

    @property
    def folder(self) -> Path:
        return Path(self.config.out)

    @property
    def name(self) -> str:
        return f"{self.pair}, {self.method}, seed {self.config.seed}"


def compare(config: CompareConfig) -> None:
    """Run what is not finished, then write the tables.

    Raises:
        EvaluationError: at the end, if a run failed; the table shows the others.
    """
    jobs = plan(config)
    done = {job.folder for job in jobs if finished(job)}
    wanted = [job for job in jobs if job.method in config.selected]
    failed = run_jobs([job for job in wanted if job.folder not in done], len(wanted), config)
    folder = Path(config.out) / config.name
    found = [gather(pair, jobs, config) for pair in config.pairs]
    write(folder, found, grouped(found, config.groups))
    there = sorted(path.name for path in folder.iterdir() if path.name != LOCK)
    print(f"\n{(folder / 'table.md').read_text('utf-8')}\n{folder}: {', '.join(there)}")
    if failed:
        raise EvaluationError(
            f"{len(failed)} of {len(wanted)} runs failed: "
            + "; ".join(f"{job.name} (see {job.folder / 'log.txt'})" for job in failed)
        )


def plan(config: CompareConfig) -> list[Job]:
    """All jobs in the order of pairs, seeds and methods.

    Raises:
        ConfigError: a setting that is unknown or impossible, before anything runs.
    """
    jobs: list[Job] = []
    choice: dict[str, Any] = {"selection": config.selection, "best_on_labels": config.best_on_labels}
    for pair, file in config.pairs.items():
        for seed in config.seeds:
            first: dict[str, Path] = {}
            for method in config.methods:
                out = Path(config.out) / pair / f"seed{seed}" / method
                resolved = resolve(config, file, method, seed, out)
                stage_1 = json.dumps(bound_settings(resolved, "teacher"), sort_keys=True, default=str)
                transductive_oracle = resolved.teacher.supervise == "target" and resolved.target.eval is None
                mine = choice | {"folds": config.folds} if transductive_oracle else choice
                if config.selection != "last" or config.best_on_labels:
                    mine = mine | {"snapshots": resolved.log.snapshots}
                name = resolved.teacher.name
                there = lender(resolved, "teacher", name, f"{name}.safetensors")
                jobs.append(Job(pair, method, resolved, mine, None if there else first.get(stage_1)))
                if method in config.selected:
                    first.setdefault(stage_1, out)
    return jobs


def resolve(config: CompareConfig, file: str, method: str, seed: int, out: Path) -> Config:
    """The configuration of one run: the pair's, the method's, what a variant changes, and the protocol; later wins."""
    changes = dict(config.methods[method] or {})
    base = METHODS / f"{changes.pop('base', method)}.yaml"
    changes.pop("baseline", None)
    if not base.exists():
        known = ", ".join(sorted(path.stem for path in METHODS.glob("*.yaml")))
        raise ConfigError(
            f"methods.{method}: there is no {base.name} in configs/methods (there are {known}); give base"
        )
    changes = _merged(changes, config.protocol)
    overrides = Path(config.out) / config.name / "overrides" / f"{method}.yaml"
    overrides.parent.mkdir(parents=True, exist_ok=True)
    for key, value in config.set.items():
        changes = _merged(changes, _nested(key, value))
    write_text(overrides, yaml.safe_dump(changes, sort_keys=False))
    files = [word for path in (file, base, overrides) for word in ("--config", str(path))]
    return load_config([*files, "--seed", str(seed), "--out", str(out)])


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = [key for key in below.keys() & above.keys() if isinstance(above[key], dict)]
    if flat := [key for key in both if not isinstance(below[key], dict)]:
        raise ConfigError(f"configuration: {flat[0]} is {below[flat[0]]!r}, expected a mapping of keys to values")
    return {**below, **above, **{key: _merged(below[key], above[key]) for key in both}}


# Running


def run_jobs(jobs: Sequence[Job], planned: int, config: CompareConfig) -> list[Job]:
    """Run each of these unfinished jobs, of `planned` ones, in a process of its own; return those that failed.

    One after another, or `workers` at a time; with several GPUs, one on each.
    """
    gpus = 0 if all(job.config.device == "cpu" for job in jobs) else torch.cuda.device_count()
    cards = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    workers = config.workers or max(1, gpus)
    threads = config.threads or max(1, (os.cpu_count() or 1) // workers)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # inherited by the jobs
    waiting = list(jobs)
    print(f"{planned} runs, {planned - len(waiting)} of them finished before; {workers} at a time, {threads} threads")
    if not waiting:
        return []
    for pair in {job.pair: job for job in waiting}.values():
        make_generated(pair.config)
    lengths = {job.folder: planned_steps(job) for job in waiting}
    running: dict[int, tuple[Job, BaseProcess]] = {}
    failed: list[Job] = []
    spawn = multiprocessing.get_context("spawn")
    with tqdm(total=sum(lengths.values()), desc="compare", unit="step", dynamic_ncols=True, smoothing=0.02) as bar:
        bar.update(sum(steps_done(job.folder) for job in waiting))
        bar.unpause()
        try:
            while waiting or running:
                for slot, (job, process) in list(running.items()):
                    if not process.is_alive():
                        del running[slot]
                        if process.exitcode:
                            failed.append(job)
                            why = f"status {process.exitcode}" + ", killed: out of memory?" * (process.exitcode == -9)
                            bar.write(f"FAILED ({why}): {job.name}; see the end of {job.folder / 'log.txt'}")
                unsettled = {job.folder for job in waiting} | {job.folder for job, _ in running.values()}
                for slot in set(range(workers)) - set(running):
                    ready = [job for job in waiting if job.after not in unsettled]
                    if not ready:
                        break
                    job = ready[0]
                    waiting.remove(job)
                    process = spawn.Process(target=work, args=(job, cards[slot % gpus] if gpus else None))
                    process.start()
                    running[slot] = (job, process)
                    unsettled.add(job.folder)
                now = "; ".join(f"{job.method} {job.config.seed}" for job, _ in running.values())
                bar.set_postfix_str(now, refresh=False)
                time.sleep(0.5)
                bar.update(sum(min(steps_done(folder), lengths[folder]) for folder in lengths) - bar.n)
        finally:
            for _, process in running.values():
                process.terminate()
                process.join()
    return failed


def finished(job: Job) -> bool:
    """Whether the job's result is there, and was made with these settings.

    Raises:
        ConfigError: the folder was begun with other settings.
    """
    record = job.folder / "config.yaml"
    if record.exists():
        settings = {key: value for key, value in flatten(job.config).items() if not key.startswith(NOT_SCORED)}
        if changed := differences(record, settings):
            raise ConfigError(
                f"{job.folder}: begun with other settings: {'; '.join(changed)}. Give the same settings, another name "
                "to the method, or another --out"
            )
    result = job.folder / RESULT
    if not result.exists():
        return False
    with reading(result, "the result of a run", "remove it to score the run again"):
        return bool(read_json(result)["choice"] == job.choice)


def work(job: Job, gpu: str | None) -> None:
    """What the process of one job does; it ends when compare.py ends."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job.folder.mkdir(parents=True, exist_ok=True)
    with (
        open(job.folder / "log.txt", "a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            with one_writer(job.folder, wait=True):
                if not finished(job):
                    write_text(job.folder / "config.yaml", to_yaml(job.config))
                    write_text(job.folder / RESULT, json.dumps(make_result(job)))
        except BaseException:
            traceback.print_exc()
            sys.exit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def make_result(job: Job) -> dict[str, Any]:
    """Train and score; an oracle without held-back images is cross-validated, its folds' scores put together."""
    config = job.config
    if folds := job.choice.get("folds"):
        parts = [train_and_score(part, job) for part in cross_validation(config, folds)]
        together: dict[str, Any] = {
            key: [value for part in parts for value in part[key]] for key in ("images", "scenes", "matrices", "best")
        }
        totals = {key: sum(part[key] for part in parts) / folds for key in ("steps", "seconds")}  # of one model
        warnings = sorted({warning for part in parts for warning in part["warnings"]})
        peak = max(part["peak_mib"] for part in parts)
        selected = f"{parts[0]['selected']}, cross-validated with {folds} folds"
        return {
            "choice": job.choice,
            **together,
            "steps": round(totals["steps"]),
            "seconds": totals["seconds"],
            "peak_mib": peak,
            "warnings": warnings,
            "selected": selected,
        }
    return {"choice": job.choice, **train_and_score(config, job)}


def cross_validation(config: Config, folds: int) -> Iterator[Config]:
    """A configuration per fold: trained on the other folds' target images, scored on its own; scenes stay whole."""
    items = listed(config, "target", "train", labels=True)
    groups = [item.scene or item.name for item in items]
    order = {name: place for place, name in enumerate(sorted(set(groups)))}
    if len(order) < folds:
        raise ConfigError(
            f"{config.target.root}: {len(order)} images or scenes, too few for {folds} folds; lower folds"
        )
    for fold in range(folds):
        out = Path(config.out) / f"fold{fold}of{folds}"
        out.mkdir(parents=True, exist_ok=True)
        parts: dict[str, list[Item]] = {"train": [], "eval": []}
        for item, group in zip(items, groups, strict=True):
            parts["eval" if order[group] % folds == fold else "train"].append(item)
        root, lists = Path(config.target.root), dict[str, str]()
        for name, part in parts.items():
            text, path = READERS[config.target.reader].list_text(part, root), out / f"{name}.txt"
            if path.exists() and path.read_text("utf-8") != text:
                raise ConfigError(f"{path}: made from other images than there are now; give another --out")
            write_text(path, text)
            lists[name] = os.path.relpath(path.resolve(), root.resolve())
        target = replace(config.target, train=lists["train"], eval=lists["eval"])
        yield replace(config, out=str(out), target=target)


def train_and_score(config: Config, job: Job) -> dict[str, Any]:
    """All stages of one configuration, then the confusion matrix of each evaluation image."""
    out = Path(config.out)
    borrow(config, job, "teacher", config.teacher.name, f"{config.teacher.name}.safetensors")
    train_teacher(config)
    if uses_split(config):
        borrow(config, job, "split", "split", "entropy.csv")
        split_entropy(config)
    folders = [out / config.teacher.name]
    if config.intra.enabled:
        train_intra(config)
        folders.append(out / "intra")
    rows = [row for folder in folders for row in _timing(folder)]
    warnings = [f"{folder.name}: {line}" for folder in folders for line in read_warnings(folder)]
    weights = folders[-1] / ("student" if config.intra.enabled else config.teacher.name)
    cost = {
        "steps": sum(row["steps"] for row in rows),
        "seconds": sum(row["steps"] * row["step_time"] for row in rows),
        "peak_mib": max(row["peak_mib"] for row in rows),
        "warnings": warnings,
    }
    return {**score(config, weights.with_suffix(".safetensors"), job.choice), **cost}


def borrow(config: Config, job: Job, kind: Kind, name: str, last: str) -> None:
    """Copy a stage that another method of this pair and seed has finished with the same settings."""
    mine = Path(config.out) / name
    if mine.exists() or config.out != str(job.folder):
        return
    if stage := lender(config, kind, name, last):
        temporary = mine.with_name(f".{name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)  # of a copy that was interrupted
        shutil.copytree(stage, temporary, ignore=shutil.ignore_patterns("checkpoint*.pt", "tensorboard", "*.tmp"))
        temporary.rename(mine)
        print(f"{mine}: copied from {stage}, which has the same settings")


def lender(config: Config, kind: Kind, name: str, last: str) -> Path | None:
    """A finished stage of the same settings beside this run, if there is one; `last` is the file that ends a stage."""
    settings = bound_settings(config, kind)
    for stage in sorted(Path(config.out).parent.glob(f"*/{name}")):
        if (stage / last).exists() and not differences(stage / "config.yaml", settings):
            return stage
    return None


def score(config: Config, weights: Path, choice: Mapping[str, Any]) -> dict[str, Any]:
    """Confusion matrices (images, 2, 2) on the target's evaluation images, of the checkpoint that is chosen."""
    candidates = {"last": weights}
    if choice["selection"] != "last" or choice["best_on_labels"]:
        copies = sorted((weights.parent / SNAPSHOTS).glob("*.safetensors"))
        if not copies:
            raise EvaluationError(
                f"{weights.parent / SNAPSHOTS}: holds no checkpoint to choose from; the run was made without "
                "log.snapshots, or with as many steps as the stage has; give another --out, or a smaller number"
            )
        candidates = {**{copy.stem.replace("_", " "): copy for copy in copies}, **candidates}
    domain = next(domain for domain in evaluation_domains(config) if domain.role == "target")
    chosen, selected = "last", "last"
    if choice["selection"] == "entropy":
        seen = Domain("target", config.target, "", training_images(config, "target", labels=False))
        tallies = {name: tally(seen, path, config) for name, path in candidates.items()}
        chosen = min(tallies, key=lambda name: float(np.mean(tallies[name].entropy)))
        selected = f"lowest mean entropy of {len(candidates)} checkpoints on the target's training images"
    scored = candidates if choice["best_on_labels"] else {chosen: candidates[chosen]}
    tallies = {name: tally(domain, path, config) for name, path in scored.items()}
    best = max(tallies, key=lambda name: _miou(tallies[name]))
    found = {
        name: [np.zeros((2, 2)).tolist() if m is None else m.tolist() for m in t.matrices]
        for name, t in tallies.items()
    }
    return {
        "images": [item.name for item in domain.images],
        "scenes": domain.scenes or [],
        "matrices": found[chosen],
        "selected": selected,
        "chosen": chosen,
        "best": found[best] if choice["best_on_labels"] else [],
        "repeatability": None if math.isnan(tallies[chosen].repeatability) else tallies[chosen].repeatability,
    }


def tally(domain: Domain, weights: Path, config: Config) -> Tally:
    """What one checkpoint says; however many there are, one is in memory at a time.

    Raises:
        EvaluationError: there is not enough memory.
    """
    device, folder = device_of(config), Path(config.out)
    with memory_explained(weights, f"batch 1 of data.size {config.data.size}", device, LESS_MEMORY):
        models = {weights.stem: load_segmenter(weights).to(device)}
        return survey(domain, models, config, folder, masks=False, entropy=False).tallies[weights.stem]


# Gathering


def gather(pair: str, jobs: Sequence[Job], config: CompareConfig) -> Comparison:
    """The finished results of one pair."""
    mine = [job for job in jobs if job.pair == pair]
    results = []
    for job in mine:
        if not finished(job):
            continue
        with reading(job.folder / RESULT, "the result of a run", "remove it to score the run again"):
            results.append(result_of(job, read_json(job.folder / RESULT)))
    first = mine[0].config
    protocol = HELD_BACK if first.target.eval is not None else TRANSDUCTIVE
    return Comparison(
        pair=pair,
        protocol=protocol,
        methods=list(config.methods),
        results=results,
        reference=config.reference,
        seeds=config.seeds,
        baselines={name: of["baseline"] for name, of in config.methods.items() if of and "baseline" in of},
        published=read_published(Path(config.published), pair) if config.published else [],
    )


def result_of(job: Job, found: Mapping[str, Any]) -> Result:
    """
    Raises:
        KeyError, TypeError, ValueError: `found` is not what `make_result` gives.
    """
    images, scenes = [str(name) for name in found["images"]], [str(name) for name in found["scenes"]]
    matrices, best = (np.array(found[key] or np.zeros((0, 2, 2)), np.int64) for key in ("matrices", "best"))
    if matrices.shape != (len(images), 2, 2) or (matrices < 0).any() or len(scenes) not in (0, len(images)):
        raise ValueError(f"found {len(images)} images, {len(scenes)} scenes and matrices of {matrices.shape}")
    if found["best"] and (best.shape != matrices.shape or (best < 0).any()):
        raise ValueError(f"found matrices of {best.shape}, expected {matrices.shape}")
    return Result(
        method=job.method,
        seed=job.config.seed,
        images=images,
        scenes=scenes or None,
        matrices=matrices,
        steps=int(found["steps"]),
        seconds=float(found["seconds"]),
        peak_mib=None if found["peak_mib"] is None else float(found["peak_mib"]),
        warnings=[str(warning) for warning in found["warnings"]],
        selected=str(found["selected"]),
        best_matrices=best if found["best"] else None,
        repeatability=None if found.get("repeatability") is None else float(found["repeatability"]),
    )


def planned_steps(job: Job) -> int:
    """Optimiser steps of a job."""
    config, teacher = job.config, job.config.teacher
    images = expected_images(config, "target")
    steps, _ = stage_length(teacher.steps, teacher.epochs, images, teacher.batch)
    if not config.intra.enabled:
        return steps * job.choice.get("folds", 1)
    return steps + intra_length(config, images)[0]


def steps_done(folder: Path) -> int:
    """Optimiser steps in the stages of a run, by what they have logged."""
    return sum(int(row["steps"]) for file in folder.rglob("timing.jsonl") for row in _timing(file.parent))


def _timing(stage: Path) -> list[dict[str, float]]:
    """The rows of timing.jsonl, each with the steps that it stands for."""
    rows, before = [], 0
    # It is read while it is written, so the last row may be half there.
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        for line in (stage / "timing.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            done, step_time, peak = int(row["step"]), float(row["step_time"]), float(row["peak_mib"])
            rows.append({"steps": done - before, "step_time": step_time, "peak_mib": peak})
            before = done
    return rows


def _miou(tally: Tally) -> float:
    return float(scores(tally.matrix)["miou"])


if __name__ == "__main__":
    run(compare, CONFIG, Path(CONFIG.out) / CONFIG.name, together=False)
