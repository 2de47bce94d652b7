"""IntraDA (Pan et al., CVPR 2020): AdvEnt again, from easy images with the stored masks of stage 2 to hard ones."""

from pathlib import Path

from config.schema import Config
from datasets.images import ImageSet
from engine.stage import Batch, Losses, entropies
from losses.inputs import TrainingProgress
from methods.student import StudentStage, easy_and_hard
from nets.segmenter import HEADS


class IntraDAStage(StudentStage):
    """Cross-entropy on easy images, and hard images drawn to them."""

    @staticmethod
    def images(config: Config, split: Path) -> dict[str, ImageSet]:
        return easy_and_hard(config, split, stored=True)

    def step(self, batch: Batch, progress: TrainingProgress) -> Losses:
        """One easy and one hard batch -> the weighted terms."""
        easy, hard = batch["easy"], batch["hard"]
        on_easy, on_hard = self.predict_jointly(easy["image"], hard["image"])
        easy_outputs = self.outputs(easy, on_easy, {head: easy["label"] for head in HEADS}, None)
        hard_outputs = self.outputs(hard, on_hard, {}, None)
        terms, stats = self.segmentation(easy_outputs)
        terms |= self.align(easy_outputs, hard_outputs, progress)
        return Losses(terms, stats | entropies(easy=easy_outputs, hard=hard_outputs))
