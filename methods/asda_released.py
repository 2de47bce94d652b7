"""Stage 3 as the released code of ASDA has it, slips included, for the record."""

from pathlib import Path

import torch

from config.schema import Config
from datasets.images import ImageSet
from engine.forward import forward_batch
from engine.stage import Batch, Losses, entropies
from losses.inputs import TrainingProgress
from losses.pseudo_label import fuse
from methods.student import StudentStage, easy_and_hard
from nets.segmenter import HEADS, logits_by_head


class AsdaReleasedStage(StudentStage):
    """Easy images labelled by the union of anchor and EMA. Easy and hard images pass the trainee one after the other,
    the EMA's decay is constant, and of each epoch the last batch alone makes an update."""

    ema_ramp = False
    one_update_an_epoch = True

    @staticmethod
    def images(config: Config, split: Path) -> dict[str, ImageSet]:
        return easy_and_hard(config, split, stored=False)

    def step(self, batch: Batch, progress: TrainingProgress) -> Losses:
        """One easy and one hard batch -> the weighted terms of docs/method.md, section 5, as released."""
        easy, hard = batch["easy"], batch["hard"]
        image = easy["image"]
        with torch.no_grad():
            ema = self.predict(self.ema_model, image)
            of_anchor = logits_by_head(forward_batch(self.anchor, image, without="features"))
            of_ema = logits_by_head(ema)
            prob = {head: (of_anchor[head].softmax(1), of_ema[head].softmax(1)) for head in HEADS}
            label = {head: fuse(*both, "union", valid=easy["valid"]) for head, both in prob.items()}
        easy_outputs = self.outputs(easy, self.predict(self.trainee, image), label, ema)
        hard_outputs = self.outputs(hard, self.predict(self.trainee, hard["image"]), {}, None)
        terms, stats = self.segmentation(easy_outputs)
        contrast, contrast_stats = self.contrasted(easy_outputs, hard_outputs, progress)
        terms |= self.agreement(easy_outputs) | contrast | self.align(easy_outputs, hard_outputs, progress)
        return Losses(terms, stats | contrast_stats | entropies(easy=easy_outputs, hard=hard_outputs))
