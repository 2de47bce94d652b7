"""Stage 3, intra-domain: train the student on easy pseudo-labels and pull it to the hard images, guided by the anchor.

Compared methods that learn from source labels and target pseudo-labels at once (`intra.domains: source_target`) are
choices in this same stage.

    python train_intra.py --config configs/demo.yaml

Three networks share one architecture: the *anchor* is the frozen teacher, the *trainee* gets the gradient, the *EMA*
follows the trainee and becomes the student (the paper's "student" is the EMA copy).
Writes OUT/intra/: student.safetensors, checkpoint.pt, metrics.jsonl, tensorboard/. Started again, it continues.
"""

from __future__ import annotations

if __name__ == "__main__":
    from engine.cli import configure

    CONFIG = configure(__doc__)  # before torch is imported: --help and faults of the configuration answer at once

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from config.schema import Config
from datasets.files import read_names
from datasets.images import ImageSet
from engine import processes
from engine.cli import run
from engine.domains import data_record, training_images
from engine.forward import ForwardBatchDiscriminator, head_weights, shared
from engine.loop import Batch, Losses, device_of, fit, intra_length
from engine.optim import discriminator_optimizer, segmenter_optimizer
from engine.pseudo_labels import STORED_CLASSES
from engine.run import (
    build_choice,
    build_segmenter,
    make_generated,
    open_stage,
    options_of,
    trained,
    training_stream,
    uses_split,
)
from engine.schedule import Clock
from losses.consistency import consistency
from losses.entropy import mean_entropy
from losses.pseudo_label import fuse
from losses.registry import ALIGNMENTS, CONTRASTS, SELF_TRAINING
from losses.segmentation import cross_entropy
from losses.self_training import weighted_cross_entropy
from losses.side import Side
from nets.ema import EMA
from nets.projection import ProjectionHead
from nets.segmenter import HEADS, Prediction, Segmenter, resize_logits, statistics_held, upsampled
from nets.weights import save_segmenter
from utils.errors import DataError, WeightsError
from utils.labels import IGNORE

FEATURES = 128  # of the projection, docs/method.md, section 5.3
SIDES = {"easy_hard": ("easy", "hard"), "source_target": ("source", "target")}  # labelled, unlabelled


class Student(nn.Module):
    """What is trained, and what the EMA follows: the segmentation network and the contrast's projection head."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.projection = ProjectionHead(segmenter.num_features, out=FEATURES)

    def forward(self, image: Tensor) -> Prediction:
        prediction = self.segmenter(image)
        return prediction._replace(projected=self.projection(prediction.features))


class IntraStage:
    """Self-training on the labelled side, alignment of the unlabelled one with it, and the EMA."""

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
        branch = start.add_detail(w.detail).parameters() if w.detail else ()
        self.trainee = Student(start).to(device).train()
        self.ema = EMA(self.trainee, decay=w.ema_decay, ramp=w.ema_ramp)
        self.follower = cast(Student, self.ema.model)
        projection = self.trainee.projection.parameters()
        self.networks: dict[str, nn.Module] = {"trainee": self.trainee, "ema": self.ema}
        self.optimizers = {"segmenter": segmenter_optimizer(start, config.optim, projection, w.lr_factor, branch)}

        self.contrast, self.alignment = None, None
        if w.contrast != "none":
            given = (start.classes, start.num_features, FEATURES)
            self.contrast = build_choice(CONTRASTS, w.contrast, w.options, *given).to(device)
            self.networks["contrast"] = self.contrast
        if w.alignment != "none":
            discriminator = partial(ForwardBatchDiscriminator, width=config.net.discriminator_width)
            weights = {"main": w.adv_main, "aux": w.adv_aux}
            self.alignment = build_choice(ALIGNMENTS, w.alignment, w.options, start.classes, discriminator, weights).to(
                device
            )
            self.networks["alignment"] = self.alignment
            if list(self.alignment.parameters()):
                self.optimizers["discriminators"] = discriminator_optimizer(self.alignment, config.optim)
        self.two_sided = self.contrast is not None and self.contrast.two_sided
        self.online = w.domains == "easy_hard" and w.pseudo_label == "online"
        self.follows_labelled = self.online or self.contrast is not None
        self.follows_unlabelled = self.two_sided or bool(set(w.self_training) - {"stored"})
        self.rules = {
            name: partial(SELF_TRAINING[name], **options_of(SELF_TRAINING, name, w.options)) for name in w.self_training
        }

    @property
    def exported(self) -> Segmenter:
        return (self.follower if self.w.export == "ema" else self.trainee).segmenter

    def step(self, batch: Batch, clock: Clock) -> Losses:
        """One labelled and one unlabelled batch -> the weighted terms of docs/method.md, section 5."""
        w = self.w
        labelled, unlabelled = (batch[name] for name in SIDES[w.domains])
        with torch.no_grad():
            ema_labelled = self.look(self.follower, labelled["image"]) if self.follows_labelled else None
            ema_unlabelled = self.look(self.follower, unlabelled["image"]) if self.follows_unlabelled else None
            label = self.labels(labelled, ema_labelled)
            guess = self.guess(unlabelled, ema_unlabelled)
            generator = torch.Generator().manual_seed(clock.seed)
            sure = self.confident(unlabelled, guess) if self.two_sided else {}
            views = {name: rule(labelled, unlabelled, guess, clock, generator) for name, rule in self.rules.items()}

        made = [view.image for view in views.values() if view.image is not unlabelled["image"]]
        prediction, other, *of_made = self.forward(labelled["image"], unlabelled["image"], made)
        first = self.side(labelled, label, prediction, ema_labelled)
        second = self.side(unlabelled, sure, other, ema_unlabelled)

        seg = {head: cross_entropy(first.logits[head], label[head]) for head in HEADS}
        terms = {"seg_main": (w.seg_para, seg["main"]), "seg_aux": (w.seg_para * w.seg_aux, seg["aux"])}
        counts = {"accepted": label["main"] != IGNORE, "pseudo_cloud": label["main"] == 1}
        stats: dict[str, Any] = {name: pixels.sum() / first.valid.sum().clamp(min=1) for name, pixels in counts.items()}

        rest = iter(of_made)
        for name, view in views.items():
            logits = (
                second.logits if view.image is unlabelled["image"] else upsampled(next(rest), view.image.shape[-2:])
            )
            for head, weight in (("main", w.self_weight), ("aux", w.self_weight * w.seg_aux)):
                loss = weighted_cross_entropy(logits[head], view.label[head], view.weight[head])
                terms[f"{name}_{head}"] = (weight, loss)
            stats[f"accepted_{name}"] = view.accepted
        if w.consistency != "none":
            agreement = consistency(first.logits["aux"], first.logits["main"], w.consistency, first.valid)
            terms["consistency"] = (w.consistency_weight, agreement)
        if self.contrast is not None:
            contrast, contrast_stats = self.contrast(first, second, clock)
            terms["contrast"] = (w.contrast_weight, contrast)
            stats |= {f"contrast_{name}": value for name, value in contrast_stats.items()}
        if self.alignment is not None:
            terms |= self.alignment(first, second, head_weights(self.trainee.segmenter), clock)

        for name, side in zip(SIDES[w.domains], (first, second), strict=True):
            stats[f"entropy_{name}"] = partial(mean_entropy, side.logits["main"], side.valid)
        return Losses(terms, stats)

    def forward(self, labelled: Tensor, unlabelled: Tensor, made: Sequence[Tensor]) -> list[Prediction]:
        """The trainee's predictions for both sides of a batch and for each batch of images that a rule has made.

        Easy and hard images pass together and share the statistics of batch normalisation, which are then those that
        the exported network uses. Source images and those that are mixed or masked pass apart, normalised by their own
        statistics, and leave the running ones as they are.
        """
        network, look = self.trainee, partial(self.look, self.trainee)
        if self.w.domains == "source_target":
            with statistics_held(network):
                alone = look(labelled)
            both = [alone, look(unlabelled)]
        elif self.w.joint_forward:
            joint, first = look(torch.cat([labelled, unlabelled])), len(labelled)
            both = [
                Prediction._make(part if part is None else part[where] for part in joint)
                for where in (slice(first), slice(first, None))
            ]
        else:
            both = [look(labelled), look(unlabelled)]
        with statistics_held(network):
            return both + [shared(network.segmenter, image, without="features") for image in made]

    def look(self, student: Student, image: Tensor) -> Prediction:
        """What a network says of a batch, with all that a contrast may look at, if there is one."""
        if self.contrast is None:
            return shared(student.segmenter, image, without="features")
        return shared(student, image, without="" if self.contrast.looks_at_features else "features")

    def side(
        self, samples: dict[str, Any], label: dict[str, Tensor], prediction: Prediction, ema: Prediction | None
    ) -> Side:
        """All that alignment and contrast may look at."""
        side = Side(upsampled(prediction, samples["image"].shape[-2:]), samples["valid"], label)
        if self.contrast is None or ema is None:
            return side
        grid = cast(Tensor, ema.projected).shape[-2:]  # of the features: with a detail branch, main is finer
        return replace(
            side,
            features=prediction.features,
            projected=prediction.projected,
            scores=resize_logits(prediction.main, grid),
            ema_projected=ema.projected,
            ema_scores=resize_logits(ema.main, grid),
        )

    def labels(self, labelled: dict[str, Any], ema: Prediction | None) -> dict[str, Tensor]:
        """Labels (B, H, W) of each head for the labelled side; 255 where undecided or padded.

        Source images have true labels. Easy images are labelled online by anchor self-guidance, the fusion of what
        anchor and EMA say about the very same augmented image, or by the stored masks of stage 2.
        """
        if not self.online or ema is None:
            return dict.fromkeys(HEADS, labelled["label"])
        size = labelled["image"].shape[-2:]
        of_ema = {head: logits.softmax(1) for head, logits in upsampled(ema, size).items()}
        if self.w.anchor == "stored":
            of_anchor = {head: stored_opinion(labelled["label"], of_ema[head]) for head in HEADS}
        else:
            anchor = shared(self.anchor, labelled["image"], without="features")
            of_anchor = {head: logits.softmax(1) for head, logits in upsampled(anchor, size).items()}
        return {
            head: fuse(of_anchor[head], of_ema[head], self.w.fuse, self.w.floor, labelled["valid"]) for head in HEADS
        }

    def guess(self, unlabelled: dict[str, Any], ema: Prediction | None) -> dict[str, Tensor]:
        """The EMA's scores (B, K, H, W) by head on the unlabelled side, where a rule or a contrast asks for them."""
        return {} if ema is None else upsampled(ema, unlabelled["image"].shape[-2:])

    def confident(self, unlabelled: dict[str, Any], guess: dict[str, Tensor]) -> dict[str, Tensor]:
        """The guess as a label for the contrast, 255 below `contrast_floor`."""
        prob = {head: scores.softmax(1) for head, scores in guess.items()}
        return {head: fuse(p, p, "ema", self.w.contrast_floor, unlabelled["valid"]) for head, p in prob.items()}

    def after_update(self, clock: Clock) -> None:
        """EMA of weights and batch-norm statistics."""
        self.ema.update(self.trainee, clock.step)


def stored_opinion(label: Tensor, ema_prob: Tensor) -> Tensor:
    """A stored mask (B, H, W) of classes as probabilities (B, K, H, W); the EMA's own where the mask is 255."""
    certain = torch.zeros_like(ema_prob).scatter_(1, label.masked_fill(label == IGNORE, 0)[:, None], 1.0)
    return torch.where((label == IGNORE)[:, None], ema_prob, certain)


def train_intra(config: Config) -> None:
    """Run stage 3 to its end, or continue it."""
    w = config.intra
    if not w.enabled:
        print("intra: this method has no stage 3; its result is the teacher")
        return
    make_generated(config)
    anchor = trained(config, config.teacher.name)
    split = Path(config.out) / "split"
    if uses_split(config) and not (split / "entropy.csv").exists():
        raise DataError(f"{split / 'entropy.csv'}: does not exist; run split_entropy.py first, with the same --out")
    folder = open_stage(config, "intra", "intra")
    weights = folder / "student.safetensors"
    if weights.exists():
        print(f"{weights}: finished before, left as it is")
        return
    images = sides(config, split)
    print(f"{folder}: {' and '.join(f'{len(side)} {name}' for name, side in images.items())} images")
    targets = sum(len(side) for name, side in images.items() if name != "source")
    steps, epoch_steps = intra_length(config, targets)
    stage = IntraStage(config, anchor)
    fit(
        stage,
        {name: training_stream(config, side, name, w.augment) for name, side in images.items()},
        folder,
        config,
        batch=w.batch,
        steps=steps,
        epoch_steps=epoch_steps,
        warmup_epochs=0,
        described=data_record(config),
        update_every=epoch_steps if w.step_every == "epoch" else 1,
    )
    if processes.is_first():
        save_segmenter(weights, stage.exported, data_record(config))
        print(f"{weights}: written")
    processes.barrier()


def sides(config: Config, split: Path) -> dict[str, ImageSet]:
    """The images of the labelled and the unlabelled side; target labels are never looked for."""
    target = training_images(config, "target", labels=False)
    if config.intra.domains == "source_target":
        images = {"source": training_images(config, "source", labels=True), "target": target}
        masked = "target" if "stored" in config.intra.self_training else None
    else:
        lists = {part: split / f"{part}.txt" for part in ("easy", "hard")}
        images = {part: target.only(read_names(path), path) for part, path in lists.items()}
        masked = "easy" if "stored" in (config.intra.pseudo_label, config.intra.anchor) else None
    if masked is not None:
        images[masked] = images[masked].with_labels(split / "pseudo_labels", STORED_CLASSES)
    return images


if __name__ == "__main__":
    run(train_intra, CONFIG, CONFIG.out)
