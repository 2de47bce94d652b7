"""Stage 1, inter-domain: train the teacher on the labelled source while the unlabelled target is aligned with it.

    python train_teacher.py --config configs/demo.yaml
    python train_teacher.py --config configs/demo.yaml --method source_only

Writes OUT/teacher/: teacher.safetensors, checkpoint.pt, metrics.jsonl, tensorboard/. Started again, it continues.
"""

from __future__ import annotations

if __name__ == "__main__":
    from engine.cli import configure

    CONFIG = configure(__doc__)  # before torch is imported: --help and faults of the configuration answer at once

from functools import partial
from typing import Any

from torch import Tensor, nn

from config.schema import Config
from engine import processes
from engine.cli import run
from engine.domains import data_record, training_images
from engine.forward import ForwardBatchDiscriminator, head_weights, shared
from engine.loop import Batch, Losses, device_of, fit, stage_length
from engine.optim import discriminator_optimizer, segmenter_optimizer
from engine.run import build_choice, build_segmenter, make_generated, open_stage, training_stream
from engine.schedule import Clock
from losses.entropy import mean_entropy
from losses.registry import ALIGNMENTS
from losses.segmentation import cross_entropy, focal, soft_jaccard
from losses.side import Side
from nets.segmenter import HEADS, Segmenter, statistics_held, upsampled
from nets.weights import save_segmenter
from utils.errors import ConfigError


class TeacherStage:
    """Segmentation on the labelled domain plus, unless switched off, an alignment of the target."""

    def __init__(self, config: Config) -> None:
        self.w = config.teacher
        device = device_of(config)
        self.segmenter = build_segmenter(config).to(device).train()
        self.networks: dict[str, nn.Module] = {"segmenter": self.segmenter}
        self.optimizers = {"segmenter": segmenter_optimizer(self.segmenter, config.optim)}
        self.aligned = self.w.alignment != "none"
        if self.aligned:
            discriminator = partial(ForwardBatchDiscriminator, width=config.net.discriminator_width)
            weights = {"main": self.w.adv_main, "aux": self.w.adv_aux}
            given = (self.segmenter.classes, discriminator, weights)
            self.alignment = build_choice(ALIGNMENTS, self.w.alignment, self.w.options, *given).to(device)
            self.networks["alignment"] = self.alignment
            if list(self.alignment.parameters()):
                self.optimizers["discriminators"] = discriminator_optimizer(self.alignment, config.optim)

    @property
    def exported(self) -> Segmenter:
        return self.segmenter

    def step(self, batch: Batch, clock: Clock) -> Losses:
        """One labelled and one target batch -> the weighted terms of docs/method.md, section 3."""
        w, labelled = self.w, batch[self.w.supervise]
        with statistics_held(self.segmenter, held=self.aligned and w.batch_norm == "target"):
            source = self.look(labelled)
        seg = {head: self.segmentation(source.logits[head], labelled["label"]) for head in HEADS}
        terms = {"seg_main": (1.0, seg["main"]), "seg_aux": (w.seg_aux, seg["aux"])}
        sides = {w.supervise: source}

        if self.aligned:
            target = self.look(batch["target"])
            terms |= self.alignment(source, target, head_weights(self.segmenter), clock)
            sides["target"] = target
        entropy = {
            f"entropy_{name}": partial(mean_entropy, side.logits["main"], side.valid) for name, side in sides.items()
        }
        return Losses(terms, {**entropy})

    def look(self, samples: dict[str, Any]) -> Side:
        """The predictions for one domain's batch."""
        image = samples["image"]
        prediction = shared(self.segmenter, image, without="features")
        return Side(upsampled(prediction, image.shape[-2:]), samples["valid"])

    def segmentation(self, logits: Tensor, label: Tensor) -> Tensor:
        surprise = focal(logits, label, self.w.focal) if self.w.focal else cross_entropy(logits, label)
        return surprise + self.w.jaccard * soft_jaccard(logits, label)

    def after_update(self, clock: Clock) -> None:
        pass


def train_teacher(config: Config) -> None:
    """Run stage 1 to its end, or continue it."""
    w = config.teacher
    make_generated(config)
    folder = open_stage(config, "teacher", w.name)
    weights = folder / f"{w.name}.safetensors"
    if weights.exists():
        print(f"{weights}: finished before, left as it is")
        return
    stage = TeacherStage(config)
    if w.supervise == "target":  # the oracle, the only one that sees target labels
        if config.target.eval is None and not config.target.eval_share:
            raise ConfigError(
                "teacher.supervise is 'target' and no target images are held back: the oracle would be scored on the "
                "images it learnt; give target.eval or target.eval_share, or let compare.py cross-validate"
            )
        target = training_images(config, "target", labels=True)
        streams = {"target": target}
    else:
        target = training_images(config, "target", labels=False)
        streams = {"source": training_images(config, "source", labels=True)}
        if stage.aligned:
            streams["target"] = target
    print(f"{folder}: {', '.join(f'{len(images)} {name} images' for name, images in streams.items())}")
    steps, epoch_steps = stage_length(w.steps, w.epochs, len(target), w.batch)
    fit(
        stage,
        {name: training_stream(config, images, name, w.augment) for name, images in streams.items()},
        folder,
        config,
        batch=w.batch,
        steps=steps,
        epoch_steps=epoch_steps,
        warmup_epochs=15,
        described=data_record(config),
    )
    if processes.is_first():
        save_segmenter(weights, stage.segmenter, data_record(config))
        print(f"{weights}: written")
    processes.barrier()


if __name__ == "__main__":
    run(train_teacher, CONFIG, CONFIG.out)
