"""Stage 3, intra-domain: train the student on easy pseudo-labels and pull it to the hard images, guided by the anchor.

    python train_intra.py --config configs/demo.yaml

Three networks share one architecture: the *anchor* is the frozen teacher, the *trainee* gets the gradient, the *EMA*
follows the trainee and becomes the student (the paper's "student" is the EMA copy).
Writes OUT/intra/: student.safetensors, checkpoint.pt, metrics.jsonl, tensorboard/. Started again, it continues.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.cli import configure

    CONFIG = configure(__doc__)  # before torch is imported: --help and faults of the configuration answer at once

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from losses import (
    IGNORE,
    ContrastMemory,
    consistency,
    cross_entropy,
    fuse,
    high_entropy_contrast,
    mean_entropy,
    normalised_entropy,
    pix_contrast,
)
from losses.alignment import alignment, entropy_map
from nets.discriminator import Discriminator
from nets.ema import EMA
from nets.projection import ProjectionHead
from nets.segmenter import HEADS, Prediction, Segmenter, upsampled
from nets.weights import save_segmenter
from utils.cli import run
from utils.config import Config
from utils.engine import Batch, Losses, device_of, fit, stage_length
from utils.errors import DataError, WeightsError
from utils.optim import discriminator_optimizer, segmenter_optimizer
from utils.plots import prediction_grid
from utils.run import build_segmenter, make_generated, open_stage, trained, training_items, training_stream
from utils.schedule import Clock

FEATURES = 128  # of the projection, docs/method.md, section 5.3


class Student(nn.Module):
    """What is trained, and what the EMA follows: the segmentation network and the contrast's projection head."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.projection = ProjectionHead(segmenter.num_features, out=FEATURES)


class IntraStage:
    """Self-training on easy images, entropy-map alignment of the hard ones, and the EMA."""

    def __init__(self, config: Config, anchor: Segmenter) -> None:
        self.w = w = config.intra
        device = device_of(config)
        self.anchor = anchor.to(device).eval().requires_grad_(False)
        # The same seed as in stage 1; ImageNet weights would only be overwritten, so they need not be at hand.
        bare = replace(config, net=replace(config.net, weights=None, checkpoint=None))
        start = build_segmenter(bare if w.init == "teacher" else config)
        if start.architecture != anchor.architecture:
            raise WeightsError(
                f"the teacher is {anchor.architecture}, the configuration asks for {start.architecture}; "
                "give stage 3 the net settings of stage 1"
            )
        if w.init == "teacher":
            start.load_state_dict(anchor.state_dict())
        self.trainee = Student(start).to(device)
        self.ema = EMA(self.trainee, decay=w.ema_decay, ramp=w.ema_ramp)
        self.follower = cast(Student, self.ema.model)
        self.memory = ContrastMemory(start.classes, FEATURES, momentum=w.contrast_momentum).to(device)
        width = config.net.discriminator_width
        self.discriminators = nn.ModuleDict({h: Discriminator(start.classes, width) for h in HEADS}).to(device)
        self.networks: dict[str, nn.Module] = {
            "trainee": self.trainee,
            "ema": self.ema,
            "memory": self.memory,
            "discriminators": self.discriminators,
        }
        projection = self.trainee.projection.parameters()
        self.optimizers = {
            "segmenter": segmenter_optimizer(start, config.optim, projection, factor=w.lr_factor),
            "discriminators": discriminator_optimizer(self.discriminators, config.optim),
        }

    def step(self, batch: Batch, clock: Clock) -> Losses:
        """One easy and one hard batch -> the weighted terms of docs/method.md, section 5."""
        self.trainee.train()
        w, easy, hard = self.w, batch["easy"], batch["hard"]
        size = easy["image"].shape[-2:]
        prediction, hard_prediction = self.forward(easy["image"], hard["image"])
        logits, hard_logits = upsampled(prediction, size), upsampled(hard_prediction, size)

        with torch.no_grad():
            ema = self.follower.segmenter(easy["image"])
            label = self.pseudo_label(easy, upsampled(ema, size))

        seg = {head: cross_entropy(logits[head], label[head]) for head in HEADS}
        terms = {"seg_main": (w.seg_para, seg["main"]), "seg_aux": (w.seg_para * w.seg_aux, seg["aux"])}
        stats = {
            "accepted": (label["main"] != IGNORE).sum() / easy["valid"].sum(),
            "pseudo_cloud": (label["main"] == 1).sum() / easy["valid"].sum(),
        }

        if w.consistency != "none":
            agreement = consistency(logits["aux"], logits["main"], w.consistency, easy["valid"])
            terms["consistency"] = (w.consistency_weight, agreement)
        if w.contrast == "pix":
            pix = [pix_contrast(logits[head], label[head], clock.epoch, clock.epochs) for head in HEADS]
            terms["contrast"] = (w.contrast_weight, pix[0] + pix[1])
        elif w.contrast == "hec":
            hec, hec_stats = self.contrast(prediction, ema, label["main"], clock)
            terms["contrast"] = (w.contrast_weight, hec)
            stats |= {f"contrast_{name}": value for name, value in hec_stats.items()}

        maps_easy = {head: entropy_map(logits[head], easy["valid"]) for head in HEADS}
        maps_hard = {head: entropy_map(hard_logits[head], hard["valid"]) for head in HEADS}
        adv, dis = alignment(self.discriminators, maps_easy, maps_hard)
        terms |= {"adv_main": (w.adv_main, adv["main"]), "adv_aux": (w.adv_aux, adv["aux"])}
        terms |= {"dis_main": (1.0, dis["main"]), "dis_aux": (1.0, dis["aux"])}

        for name, samples, scores in (("easy", easy, logits), ("hard", hard, hard_logits)):
            stats[f"entropy_{name}"] = mean_entropy(scores["main"], samples["valid"])
        return Losses(terms, stats)

    def forward(self, easy: Tensor, hard: Tensor) -> tuple[Prediction, Prediction]:
        """The trainee's predictions for both splits.

        Jointly, both share the statistics of batch normalisation, which are then those that the exported network uses;
        apart, the trainee learns under statistics of easy images alone.
        """
        if not self.w.joint_forward:
            return self.trainee.segmenter(easy), self.trainee.segmenter(hard)
        both = self.trainee.segmenter(torch.cat([easy, hard]))
        easy_part, hard_part = zip(*(part.split([len(easy), len(hard)]) for part in both), strict=True)
        return Prediction(*easy_part), Prediction(*hard_part)

    def pseudo_label(self, easy: dict[str, Any], ema_logits: dict[str, Tensor]) -> dict[str, Tensor]:
        """Labels (B, H, W) of each head for the easy batch; 255 where undecided or padded.

        Online: anchor self-guidance, the fusion of what anchor and EMA say about the very same augmented image.
        Stored: the masks of stage 2, for both heads.
        """
        if self.w.pseudo_label == "stored":
            return dict.fromkeys(HEADS, easy["label"])
        anchor_logits = upsampled(self.anchor(easy["image"]), easy["image"].shape[-2:])
        return {
            head: fuse(
                anchor_logits[head].softmax(1), ema_logits[head].softmax(1), self.w.fuse, self.w.floor, easy["valid"]
            )
            for head in HEADS
        }

    def contrast(
        self, prediction: Prediction, ema: Prediction, label: Tensor, clock: Clock
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """High-entropy contrast at the network's own resolution, entropy and reliable features from the EMA."""
        # A logit of a corner-aligned grid stands exactly on these rows and columns of the image.
        rows, columns = (
            torch.linspace(0, full - 1, low, device=label.device).round().long()
            for full, low in zip(label.shape[-2:], ema.main.shape[-2:], strict=True)
        )
        return high_entropy_contrast(
            self.trainee.projection(prediction.features),
            self.follower.projection(ema.features),
            normalised_entropy(ema.main.softmax(1)),
            label[:, rows[:, None], columns],
            self.memory,
            clock.progress,
            generator=torch.Generator().manual_seed(clock.seed),
        )

    def after_update(self, clock: Clock) -> None:
        """EMA of weights and batch-norm statistics."""
        self.ema.update(self.trainee, clock.step)

    def picture(self, batch: Batch) -> np.ndarray:
        return prediction_grid(self.follower.segmenter, batch)


def train_intra(config: Config) -> None:
    """Run stage 3 to its end, or continue it."""
    w = config.intra
    if not w.enabled:
        print("intra: this method has no stage 3; its result is the teacher")
        return
    make_generated(config)
    anchor = trained(config, config.teacher.name, config.teacher.name)
    split = Path(config.out) / "split"
    if not (split / "entropy.csv").exists():
        raise DataError(f"{split / 'entropy.csv'}: does not exist; run split_entropy.py first, with the same --out")
    folder = open_stage(config, "intra", "intra")
    weights = folder / "student.safetensors"
    if weights.exists():
        print(f"{weights}: finished before, left as it is")
        return
    easy, hard = (
        training_items(replace(config.target, train=str(split / f"{part}.txt")), part, labels=False)
        for part in ("easy", "hard")
    )
    if w.pseudo_label == "stored":
        easy = [item._replace(label=split / "pseudo_labels" / f"{item.name}.png") for item in easy]
    print(f"{folder}: {len(easy)} easy and {len(hard)} hard images")
    steps, epoch_steps = stage_length(w.steps, w.epochs, len(hard), w.batch)
    stage = IntraStage(config, anchor)
    fit(
        stage,
        {
            name: training_stream(config, items, name, w.augment, {0: 0, 255: 1})  # values of stage 2's masks
            for name, items in (("easy", easy), ("hard", hard))
        },
        folder,
        config,
        batch=w.batch,
        steps=steps,
        epoch_steps=epoch_steps,
        warmup_epochs=0,
        update_every=epoch_steps if w.step_every == "epoch" else 1,
    )
    save_segmenter(weights, (stage.follower if w.export == "ema" else stage.trainee).segmenter)
    print(f"{weights}: written")


if __name__ == "__main__":
    run(train_intra, CONFIG)
