"""Source labels and target pseudo-labels at once: stage 3 of ESL, U2PL, SDCA, DACS, MIC and asda_plus."""

from pathlib import Path

import torch

from config.schema import Config
from datasets.images import ImageSet
from engine.build import bound_choice
from engine.domains import training_images
from engine.forward import forward_batch
from engine.pseudo_labels import STORED_CLASSES
from engine.stage import Batch, Losses, entropies
from losses.inputs import TrainingProgress
from losses.registry import SELF_TRAINING
from losses.segmentation import weighted_cross_entropy
from methods.student import StudentStage
from nets.segmenter import HEADS, Segmenter, logits_by_head, statistics_held


class SourceTargetStage(StudentStage):
    """Source images have their true labels, target images those of the rules in `intra.self_training`.

    Source images, and those that are mixed or masked, pass the trainee apart, normalised by their own statistics, and
    leave the running ones as they are: these are the target's.
    """

    def __init__(self, config: Config, anchor: Segmenter) -> None:
        super().__init__(config, anchor)
        self.rules = {name: bound_choice(SELF_TRAINING, name, self.w.options) for name in self.w.self_training}
        self.ema_on_target = self.labels_both or bool(self.rules.keys() - {"stored"})

    @staticmethod
    def images(config: Config, split: Path) -> dict[str, ImageSet]:
        target = training_images(config, "target", labels=False)
        if "stored" in config.intra.self_training:
            target = target.with_labels(split / "pseudo_labels", STORED_CLASSES)
        return {"source": training_images(config, "source", labels=True), "target": target}

    def step(self, batch: Batch, progress: TrainingProgress) -> Losses:
        """One source and one target batch -> the weighted terms of docs/method.md, section 5.7."""
        w, source, target = self.w, batch["source"], batch["target"]
        with torch.no_grad():
            ema_source = self.predict(self.ema_model, source["image"]) if self.contrast else None
            ema_target = self.predict(self.ema_model, target["image"]) if self.ema_on_target else None
            ema_logits = logits_by_head(ema_target) if ema_target else {}
            generator = progress.generator()
            batches = {name: rule(source, target, ema_logits, progress, generator) for name, rule in self.rules.items()}

        with statistics_held(self.trainee):
            on_source = self.predict(self.trainee, source["image"])
        on_target = self.predict(self.trainee, target["image"])
        label = {head: source["label"] for head in HEADS}
        source_outputs = self.outputs(source, on_source, label, ema_source)
        target_outputs = self.unlabelled_outputs(target, on_target, ema_target)

        terms, stats = self.segmentation(source_outputs)
        for name, labelled in batches.items():
            logits = target_outputs.logits
            if labelled.image is not target["image"]:
                with statistics_held(self.trainee):
                    logits = logits_by_head(forward_batch(self.trainee.segmenter, labelled.image, without="features"))
            for head, weight in (("main", 1.0), ("aux", w.seg_aux)):
                loss = weighted_cross_entropy(logits[head], labelled.label[head], labelled.weight[head])
                terms[f"{name}_{head}"] = (weight, loss)
            stats[f"accepted_{name}"] = labelled.accepted
        contrast, contrast_stats = self.contrasted(source_outputs, target_outputs, progress)
        terms |= contrast | self.align(source_outputs, target_outputs, progress)
        return Losses(terms, stats | contrast_stats | entropies(source=source_outputs, target=target_outputs))
