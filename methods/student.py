"""The student of stage 3 and its surroundings, the same for ASDA and for every compared method.

Three networks share one architecture: the *anchor* is the frozen teacher, the *trainee* gets the gradient, the *EMA*
follows the trainee and becomes the student (the paper's "student" is the EMA copy).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from config.schema import Config
from datasets.files import read_names
from datasets.images import ImageSet
from engine.build import build_choice, build_segmenter, device_of
from engine.domains import training_images
from engine.forward import forward_batch
from engine.optim import segmenter_optimizer
from engine.pseudo_labels import STORED_CLASSES
from engine.stage import Stats, Terms, TrainingStage
from losses.consistency import consistency
from losses.contrast import Contrast
from losses.inputs import DomainOutputs, TrainingProgress
from losses.pseudo_label import fuse
from losses.registry import CONTRASTS
from losses.segmentation import cross_entropy
from nets.ema import EMA
from nets.projection import ProjectionHead
from nets.segmenter import HEADS, Prediction, Segmenter, logits_by_head
from utils.errors import WeightsError
from utils.labels import IGNORE

FEATURES = 128  # of the projection, docs/method.md, section 5.3
Samples = dict[str, Any]  # of one stream: image, valid, name and, in a labelled stream, label


class SegmenterWithProjection(nn.Module):
    """What is trained, and what the EMA follows: the segmentation network and the contrast's projection head."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.projection = ProjectionHead(segmenter.num_features, out=FEATURES)

    def forward(self, image: Tensor) -> Prediction:
        prediction = self.segmenter(image)
        return prediction._replace(projected=self.projection(prediction.features))


class StudentStage(TrainingStage):
    """Base of the stages that train a student: a method adds its `step`, and says which images it learns from.

    Attributes:
        ema_ramp: the EMA's decay grows from 0, see `nets.ema.EMA`.
    """

    ema_ramp = True

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
        self.align_corners = start.align_corners
        self.trainee = SegmenterWithProjection(start).to(device).train()
        self.ema = EMA(self.trainee, decay=w.ema_decay, ramp=self.ema_ramp)
        self.ema_model = cast(SegmenterWithProjection, self.ema.model)
        self.exported = (self.ema_model if w.export == "ema" else self.trainee).segmenter
        self.networks = {"trainee": self.trainee, "ema": self.ema}
        projection = self.trainee.projection.parameters()
        self.optimizers = {"segmenter": segmenter_optimizer(start, config.optim, projection, w.lr_factor)}

        self.contrast: Contrast | None = None
        if w.contrast != "none":
            sizes = (start.classes, start.num_features, FEATURES)
            self.contrast = build_choice(CONTRASTS, w.contrast, w.options, *sizes).to(device)
            self.networks["contrast"] = self.contrast
        self.labels_both = self.contrast is not None and self.contrast.both_domains
        self.add_alignment(config, w, start)

    @staticmethod
    def images(config: Config, split: Path) -> dict[str, ImageSet]:
        """The images of the labelled and of the unlabelled stream, by its name; target labels are never looked for."""
        raise NotImplementedError

    def predict(self, network: SegmenterWithProjection, image: Tensor) -> Prediction:
        """A network's prediction of a batch, with all that the contrast reads, if there is one."""
        if self.contrast is None:
            return cast(Prediction, forward_batch(network.segmenter, image, without="features"))
        without = "" if self.contrast.reads_features else "features"
        return cast(Prediction, forward_batch(network, image, without))

    def predict_jointly(self, first: Tensor, second: Tensor) -> list[Prediction]:
        """The trainee's predictions of two batches that share their batch statistics, those of the exported network."""
        joint = self.predict(self.trainee, torch.cat([first, second]))
        halves = slice(len(first)), slice(len(first), None)
        return [Prediction._make(part if part is None else part[half] for part in joint) for half in halves]

    def outputs(
        self, samples: Samples, prediction: Prediction, label: dict[str, Tensor], ema: Prediction | None
    ) -> DomainOutputs:
        """All that alignment and contrast may look at."""
        outputs = DomainOutputs(logits_by_head(prediction), samples["valid"], label, align_corners=self.align_corners)
        if self.contrast is None or ema is None:
            return outputs
        outputs = replace(outputs, features=prediction.features, projected=prediction.projected)
        return replace(outputs, scores=prediction.scores, ema_projected=ema.projected, ema_scores=ema.scores)

    def unlabelled_outputs(self, samples: Samples, prediction: Prediction, ema: Prediction | None) -> DomainOutputs:
        """The same of an unlabelled domain: EMA pseudo-labels, 255 below `contrast_floor`, where the contrast asks."""
        if not self.labels_both:
            return self.outputs(samples, prediction, {}, ema)
        with torch.no_grad():
            ema = self.predict(self.ema_model, samples["image"]) if ema is None else ema
            prob = {head: logits.softmax(1) for head, logits in logits_by_head(ema).items()}
            label = {head: fuse(p, p, "ema", self.w.contrast_floor, samples["valid"]) for head, p in prob.items()}
        return self.outputs(samples, prediction, label, ema)

    def segmentation(self, outputs: DomainOutputs) -> tuple[Terms, Stats]:
        """Cross-entropy of both heads on the labelled domain; shares of its pixels with a label, and with cloud."""
        w, label = self.w, outputs.label
        seg = {head: cross_entropy(outputs.logits[head], label[head]) for head in HEADS}
        terms = {"seg_main": (w.seg_para, seg["main"]), "seg_aux": (w.seg_para * w.seg_aux, seg["aux"])}
        counts = {"accepted": label["main"] != IGNORE, "pseudo_cloud": label["main"] == 1}
        return terms, {name: pixels.sum() / outputs.valid.sum().clamp(min=1) for name, pixels in counts.items()}

    def agreement(self, outputs: DomainOutputs) -> Terms:
        """Consistency of the two heads; none where it is switched off."""
        if self.w.consistency == "none":
            return {}
        term = consistency(outputs.logits["aux"], outputs.logits["main"], self.w.consistency, outputs.valid)
        return {"consistency": (self.w.consistency_weight, term)}

    def contrasted(
        self, labelled: DomainOutputs, unlabelled: DomainOutputs, progress: TrainingProgress
    ) -> tuple[Terms, Stats]:
        """The contrast; none where it is switched off."""
        if self.contrast is None:
            return {}, {}
        term, stats = self.contrast(labelled, unlabelled, progress)
        return {"contrast": (self.w.contrast_weight, term)}, {f"contrast_{name}": n for name, n in stats.items()}

    def after_update(self, progress: TrainingProgress) -> None:
        """EMA of weights and batch-norm statistics."""
        self.ema.update(self.trainee, progress.step)


def easy_and_hard(config: Config, split: Path, *, stored: bool) -> dict[str, ImageSet]:
    """The easy and the hard target images of stage 2; with `stored`, easy ones have its masks as labels."""
    target = training_images(config, "target", labels=False)
    lists = {part: split / f"{part}.txt" for part in ("easy", "hard")}
    images = {part: target.only(read_names(path), path) for part, path in lists.items()}
    if stored:
        images["easy"] = images["easy"].with_labels(split / "pseudo_labels", STORED_CLASSES)
    return images
