"""One job: train by the stages' scripts, choose a checkpoint, score it on the target's evaluation images."""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from comparison.jobs import Job
from comparison.results import Result
from comparison.stages import make_stages, training_cost, write_settings
from config.schema import Config
from datasets.readers import READERS
from engine.build import device_of
from engine.domains import listed, training_images
from engine.layout import SNAPSHOTS
from engine.memory import memory_explained
from nets.weights import load_segmenter
from report.evaluation import Domain, ModelScores, evaluate_domain
from report.metrics import scores
from report.protocol import LESS_MEMORY, evaluation_domains
from utils.errors import ConfigError, EvaluationError
from utils.files import write_text


def make_result(job: Job) -> Result:
    """Train and score; an oracle without held-back images is cross-validated, its folds' scores put together."""
    folds = job.choice.get("folds")
    if folds is None:
        return train_and_score(job, job.config)
    parts = [train_and_score(job, fold) for fold in cross_validation(job.config, folds)]
    best = [part.best for part in parts if part.best is not None]
    return Result(
        method=job.method,
        seed=job.config.seed,
        images=[name for part in parts for name in part.images],
        scenes=[scene for part in parts for scene in part.scenes],
        matrices=np.concatenate([part.matrices for part in parts]),
        steps=round(sum(part.steps for part in parts) / folds),  # of one model
        seconds=sum(part.seconds for part in parts) / folds,
        peak_mib=max(part.peak_mib or 0 for part in parts),
        warnings=sorted({warning for part in parts for warning in part.warnings}),
        selected=f"{parts[0].selected}, cross-validated with {folds} folds",
        best=np.concatenate(best) if best else None,
    )


def cross_validation(config: Config, folds: int) -> Iterator[Config]:
    """A run per fold: trained on the other folds' target images, scored on its own; scenes stay whole."""
    write_settings(config)  # those of the whole
    items, root = listed(config, "target", "train", labels=True), Path(config.target.root)
    groups = sorted({item.scene or item.name for item in items})
    if len(groups) < folds:
        raise ConfigError(f"{root}: {len(groups)} images or scenes, too few for {folds} folds; lower folds")
    for fold in range(folds):
        out = Path(config.out) / f"fold{fold}of{folds}"
        out.mkdir(parents=True, exist_ok=True)
        held = {*groups[fold::folds]}
        lists: dict[str, Any] = {}
        for name in ("train", "eval"):
            part = [item for item in items if ((item.scene or item.name) in held) == (name == "eval")]
            text, path = READERS[config.target.reader].list_text(part, root), out / f"{name}.txt"
            if path.exists() and path.read_text("utf-8") != text:
                raise ConfigError(f"{path}: made from other images than there are now; give another --out")
            write_text(path, text)
            lists[name] = os.path.relpath(path.resolve(), root.resolve())
        yield replace(config, out=str(out), target=replace(config.target, **lists))


def train_and_score(job: Job, config: Config) -> Result:
    """All stages of one configuration, the job's or a fold's, then the scores of the checkpoint that is chosen."""
    scored = score(config, make_stages(config), job.choice)
    return Result(method=job.method, seed=config.seed, **scored, **training_cost(config))


def score(config: Config, weights: Path, choice: Mapping[str, Any]) -> dict[str, Any]:
    """What `Result` holds of the chosen checkpoint, on the target's evaluation images."""
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
    chosen = selected = "last"
    if choice["selection"] == "entropy":
        unlabelled = Domain("target", config.target, "", training_images(config, "target", labels=False))
        seen = {name: scores_of_checkpoint(unlabelled, path, config) for name, path in candidates.items()}
        chosen = min(seen, key=lambda name: float(np.mean(seen[name].entropy)))
        selected = f"lowest mean entropy of {len(candidates)} checkpoints on the target's training images"
    wanted = candidates if choice["best_on_labels"] else [chosen]
    scored = {name: scores_of_checkpoint(domain, candidates[name], config) for name in wanted}
    best = max(scored, key=lambda name: float(scores(scored[name].matrix)["miou"]))
    repeatability = scored[chosen].repeatability
    return {
        "images": [item.name for item in domain.images],
        "scenes": domain.scenes or [],
        "matrices": _stacked(scored[chosen]),
        "selected": selected,
        "chosen": chosen,
        "best": _stacked(scored[best]) if choice["best_on_labels"] else None,
        "repeatability": None if math.isnan(repeatability) else repeatability,
    }


def scores_of_checkpoint(domain: Domain, weights: Path, config: Config) -> ModelScores:
    """What one checkpoint says; however many there are, one is in memory at a time."""
    device = device_of(config)
    with memory_explained(weights, f"batch 1 of data.size {config.data.size}", device, LESS_MEMORY):
        models = {weights.stem: load_segmenter(weights).to(device)}
        return evaluate_domain(domain, models, config, Path(config.out)).models[weights.stem]


def _stacked(counts: ModelScores) -> np.ndarray:
    """The confusion matrices (images, 2, 2), zero for an image without a label."""
    return np.array([np.zeros((2, 2), np.int64) if matrix is None else matrix for matrix in counts.matrices])
