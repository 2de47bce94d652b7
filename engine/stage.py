"""What a training stage is to the loop: its networks and optimisers, and one step that reads like the formula."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from config.schema import Config, IntraConfig, TeacherConfig
from engine.build import build_alignment
from engine.forward import head_weights
from engine.optim import discriminator_optimizer
from losses.entropy import mean_entropy
from losses.inputs import DomainOutputs, TrainingProgress
from nets.segmenter import Segmenter

Batch = dict[str, dict[str, Any]]  # stream -> image, valid, name and, in a labelled stream, label
Terms = dict[str, tuple[float, Tensor]]  # name -> weight and raw loss
Stats = dict[str, Tensor | Callable[[], Tensor]]


class Losses(NamedTuple):
    """The terms, whose weighted sum is minimised, and numbers for the log, or what computes them when it is written."""

    terms: Terms
    stats: Stats


class TrainingStage:
    """Base of the training stages.

    Attributes:
        networks: everything that belongs into a checkpoint, by name.
        optimizers: "segmenter" and, with an adversary, "discriminators".
        exported: the network that the stage is for.
        alignment: how unlabelled images draw on the segmenter, or None.
        warmup_epochs: of the released schedule.
        one_update_an_epoch: only the last step of each epoch updates, as in the released stage 3.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    exported: Segmenter
    warmup_epochs = 0
    one_update_an_epoch = False

    def add_alignment(self, config: Config, settings: TeacherConfig | IntraConfig, segmenter: Segmenter) -> None:
        """Build the alignment that a stage's settings name, and an optimiser of its discriminators."""
        self.aligned = segmenter
        self.alignment = build_alignment(config, settings, segmenter.classes)
        if self.alignment is not None:
            self.networks["alignment"] = self.alignment
            if list(self.alignment.parameters()):
                self.optimizers["discriminators"] = discriminator_optimizer(self.alignment, config.optim)

    def align(self, source: DomainOutputs, target: DomainOutputs, progress: TrainingProgress) -> Terms:
        """The weighted terms that make the target's outputs like the source's; none without an alignment."""
        if self.alignment is None:
            return {}
        terms: Terms = self.alignment(source, target, head_weights(self.aligned), progress)
        return terms

    def step(self, batch: Batch, progress: TrainingProgress) -> Losses:
        """The losses of one batch; the loop differentiates, checks and updates."""
        raise NotImplementedError

    def after_update(self, progress: TrainingProgress) -> None:
        """What follows an update, such as the EMA."""


def entropies(**domains: DomainOutputs) -> Stats:
    """The mean entropy of each domain's predictions, computed when the log asks."""
    return {f"entropy_{name}": partial(mean_entropy, of.logits["main"], of.valid) for name, of in domains.items()}
