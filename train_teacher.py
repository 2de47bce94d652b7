"""Stage 1, inter-domain: train the teacher on the labelled source while the unlabelled target is aligned with it.

    python train_teacher.py --config configs/demo.yaml
    python train_teacher.py --config configs/demo.yaml --method source_only

Writes OUT/teacher/: teacher.safetensors, checkpoint.pt, metrics.jsonl, tensorboard/. Started again, it continues.
"""

if __name__ == "__main__":
    from engine.cli import configure

    CONFIG = configure(__doc__)  # before torch is imported: --help and faults of the configuration answer at once

from typing import Any

from torch import Tensor

from config.schema import AUTO, Config
from engine.build import build_segmenter, device_of, require_network, training_stream
from engine.cli import run
from engine.domains import data_record, training_images
from engine.forward import forward_batch
from engine.loop import fit
from engine.optim import segmenter_optimizer
from engine.run import make_generated, open_stage, uses_split, write_weights
from engine.schedule import easy_count, stage_length
from engine.stage import Batch, Losses, TrainingStage, entropies
from engine.target_view import choose_view
from losses.inputs import DomainOutputs, TrainingProgress
from losses.segmentation import cross_entropy, focal, soft_jaccard
from nets.segmenter import HEADS, logits_by_head, statistics_held
from utils.errors import ConfigError


class TeacherStage(TrainingStage):
    """Segmentation on the labelled domain plus, unless switched off, an alignment of the target."""

    warmup_epochs = 15

    def __init__(self, config: Config) -> None:
        self.w = config.teacher
        self.segmenter = self.exported = build_segmenter(config).to(device_of(config)).train()
        self.networks = {"segmenter": self.segmenter}
        self.optimizers = {"segmenter": segmenter_optimizer(self.segmenter, config.optim)}
        self.add_alignment(config, self.w, self.segmenter)

    def step(self, batch: Batch, progress: TrainingProgress) -> Losses:
        """One labelled and one target batch -> the weighted terms of docs/method.md, section 3."""
        w, labelled = self.w, batch[self.w.supervise]
        aligned = self.alignment is not None
        with statistics_held(self.segmenter, held=aligned and w.batch_norm == "target"):
            source = self.outputs(labelled)
        seg = {head: self.segmentation(source.logits[head], labelled["label"]) for head in HEADS}
        terms = {"seg_main": (1.0, seg["main"]), "seg_aux": (w.seg_aux, seg["aux"])}
        domains = {w.supervise: source}
        if aligned:
            target = self.outputs(batch["target"])
            terms |= self.align(source, target, progress)
            domains["target"] = target
        return Losses(terms, entropies(**domains))

    def outputs(self, samples: dict[str, Any]) -> DomainOutputs:
        """The predictions of one domain's batch."""
        prediction = forward_batch(self.segmenter, samples["image"], without="features")
        return DomainOutputs(logits_by_head(prediction), samples["valid"])

    def segmentation(self, logits: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy, or the focal loss, and the soft Jaccard loss of one head."""
        loss = focal(logits, label, self.w.focal) if self.w.focal else cross_entropy(logits, label)
        return loss + self.w.jaccard * soft_jaccard(logits, label)


def train_teacher(config: Config) -> None:
    """Run stage 1 to its end, or continue it."""
    w = config.teacher
    require_network(config)
    make_generated(config)
    folder = open_stage(config, "teacher", w.name)
    weights = folder / f"{w.name}.safetensors"
    if weights.exists():
        print(f"{weights}: finished before, left as it is")
        return
    if w.supervise == "target" and config.target.eval is None and not config.target.eval_share:
        raise ConfigError(
            "teacher.supervise is 'target' and no target images are held back: the oracle would be scored on the "
            "images it learnt; give target.eval or target.eval_share, or let compare.py cross-validate"
        )
    stage = TeacherStage(config)
    images = {w.supervise: training_images(config, w.supervise, labels=True)}  # the oracle alone sees target labels
    target = images.get("target") or training_images(config, "target", labels=False)
    if uses_split(config):
        easy_count(len(target), config.split.ratio, config.released.split)  # refuses what stage 2 would refuse
    if stage.alignment is not None:
        images["target"] = target
    print(f"{folder}: {', '.join(f'{len(part)} {name} images' for name, part in images.items())}")
    steps, epoch_steps = stage_length(w.steps, w.epochs, len(target), w.batch)
    metadata = data_record(config)
    streams = {str(name): training_stream(config, part, name, w.augment) for name, part in images.items()}
    fit(stage, streams, folder, config, batch=w.batch, steps=steps, epoch_steps=epoch_steps, weights_metadata=metadata)
    if config.target.scaling == AUTO and w.supervise == "source":
        choose_view(stage.segmenter, images["source"], config)
        metadata = data_record(config)
    write_weights(weights, stage.exported, metadata)


if __name__ == "__main__":
    run(train_teacher, CONFIG, CONFIG.out)
