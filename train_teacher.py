"""Stage 1, inter-domain: train the teacher on the labelled source while an adversary aligns the unlabelled target.

    python train_teacher.py --config configs/demo.yaml
    python train_teacher.py --config configs/demo.yaml --config configs/methods/source_only.yaml

Writes OUT/teacher/: teacher.safetensors, checkpoint.pt, metrics.jsonl, tensorboard/. Started again, it continues.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.cli import configure

    CONFIG = configure(__doc__)  # before torch is imported: --help and faults of the configuration answer at once

import numpy as np
from torch import Tensor, nn

from losses import cross_entropy, mean_entropy, soft_jaccard
from losses.alignment import alignment, entropy_map
from nets.discriminator import Discriminator
from nets.segmenter import HEADS, statistics_held, upsampled
from nets.weights import save_segmenter
from utils.cli import run
from utils.config import Config
from utils.engine import Batch, Losses, device_of, fit, stage_length
from utils.optim import discriminator_optimizer, segmenter_optimizer
from utils.plots import prediction_grid
from utils.run import build_segmenter, make_generated, open_stage, training_items, training_stream
from utils.schedule import Clock


class TeacherStage:
    """Segmentation on the source plus, unless switched off, entropy-map alignment of the target (AdvEnt)."""

    def __init__(self, config: Config) -> None:
        self.w = config.teacher
        device = device_of(config)
        self.segmenter = build_segmenter(config).to(device)
        self.networks: dict[str, nn.Module] = {"segmenter": self.segmenter}
        self.optimizers = {"segmenter": segmenter_optimizer(self.segmenter, config.optim)}
        self.adversarial = self.w.adversarial != "none"
        if self.adversarial:
            width = config.net.discriminator_width
            self.discriminators = nn.ModuleDict({h: Discriminator(self.segmenter.classes, width) for h in HEADS}).to(
                device
            )
            self.networks["discriminators"] = self.discriminators
            self.optimizers["discriminators"] = discriminator_optimizer(self.discriminators, config.optim)

    def step(self, batch: Batch, clock: Clock) -> Losses:
        """One source and one target batch -> the weighted terms of docs/method.md, section 3."""
        self.segmenter.train()
        w, source = self.w, batch["source"]
        with statistics_held(self.segmenter, held=self.adversarial and w.batch_norm == "target"):
            logits_s = upsampled(self.segmenter(source["image"]), source["image"].shape[-2:])
        seg = {head: self.segmentation(logits_s[head], source["label"]) for head in HEADS}
        terms = {"seg_main": (w.seg_main, seg["main"]), "seg_aux": (w.seg_aux, seg["aux"])}
        stats = {"entropy_source": mean_entropy(logits_s["main"], source["valid"])}

        if self.adversarial:
            target = batch["target"]
            logits_t = upsampled(self.segmenter(target["image"]), target["image"].shape[-2:])
            maps_s = {head: entropy_map(logits_s[head], source["valid"]) for head in HEADS}
            maps_t = {head: entropy_map(logits_t[head], target["valid"]) for head in HEADS}
            adv, dis = alignment(self.discriminators, maps_s, maps_t)
            terms |= {"adv_main": (w.adv_main, adv["main"]), "adv_aux": (w.adv_aux, adv["aux"])}
            terms |= {"dis_main": (1.0, dis["main"]), "dis_aux": (1.0, dis["aux"])}
            stats["entropy_target"] = mean_entropy(logits_t["main"], target["valid"])
        return Losses(terms, stats)

    def segmentation(self, logits: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(logits, label) + self.w.jaccard * soft_jaccard(logits, label)

    def after_update(self, clock: Clock) -> None:
        pass

    def picture(self, batch: Batch) -> np.ndarray:
        return prediction_grid(self.segmenter, batch)


def train_teacher(config: Config) -> None:
    """Run stage 1 to its end, or continue it."""
    w = config.teacher
    make_generated(config)
    folder = open_stage(config, "teacher", w.name)
    weights = folder / f"{w.name}.safetensors"
    if weights.exists():
        print(f"{weights}: finished before, left as it is")
        return
    target = training_items(config.target, "target", labels=False)
    streams = {"source": training_items(config.source, "source", labels=True), "target": target}
    stage = TeacherStage(config)
    if not stage.adversarial:
        del streams["target"]
    print(f"{folder}: {', '.join(f'{len(items)} {name} images' for name, items in streams.items())}")
    steps, epoch_steps = stage_length(w.steps, w.epochs, len(target), w.batch)
    fit(
        stage,
        {s: training_stream(config, items, s, w.augment, config.source.label_map) for s, items in streams.items()},
        folder,
        config,
        batch=w.batch,
        steps=steps,
        epoch_steps=epoch_steps,
        warmup_epochs=15,
    )
    save_segmenter(weights, stage.segmenter)
    print(f"{weights}: written")


if __name__ == "__main__":
    run(train_teacher, CONFIG)
