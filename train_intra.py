"""Stage 3, intra-domain: train the student on easy pseudo-labels and pull it to the hard images, guided by the anchor.

    python train_intra.py --config configs/demo.yaml

What is below is ASDA. A compared method may name a step of its own, `intra.step`, from the folder methods/.
Writes OUT/intra/: student.safetensors, checkpoint.pt, metrics.jsonl, tensorboard/. Started again, it continues.
"""

if __name__ == "__main__":
    from engine.cli import configure

    CONFIG = configure(__doc__)  # before torch is imported: --help and faults of the configuration answer at once

from pathlib import Path

import torch
from torch import Tensor

from config.schema import Config
from datasets.images import ImageSet
from engine.build import trained, training_stream
from engine.cli import run
from engine.domains import data_record
from engine.forward import forward_batch
from engine.loop import fit
from engine.run import make_generated, open_stage, uses_split, write_weights
from engine.schedule import intra_length
from engine.stage import Batch, Losses, entropies
from losses.inputs import TrainingProgress
from losses.pseudo_label import fuse, mask_to_probabilities
from methods.registry import STEPS
from methods.student import Samples, StudentStage, easy_and_hard
from nets.segmenter import HEADS, Prediction, logits_by_head
from utils.errors import DataError


class AsdaStage(StudentStage):
    """ASDA: anchor and EMA label the easy images, four terms teach the trainee, and the EMA follows it.

    `StudentStage` has the three networks, their optimisers and the terms by name; the formula is `step`.
    """

    @staticmethod
    def images(config: Config, split: Path) -> dict[str, ImageSet]:
        return easy_and_hard(config, split, stored=config.intra.anchor == "stored")

    def step(self, batch: Batch, progress: TrainingProgress) -> Losses:
        """One easy and one hard batch -> the weighted terms of docs/method.md, section 5.

        Easy and hard images pass the trainee together: their batch statistics are those that the student will use.
        """
        easy, hard = batch["easy"], batch["hard"]
        with torch.no_grad():
            ema_easy = self.predict(self.ema_model, easy["image"])
            pseudo_label = self.anchor_guidance(easy, ema_easy)
        on_easy, on_hard = self.predict_jointly(easy["image"], hard["image"])
        easy_outputs = self.outputs(easy, on_easy, pseudo_label, ema_easy)
        hard_outputs = self.unlabelled_outputs(hard, on_hard, None)

        segmentation, stats = self.segmentation(easy_outputs)  # cross-entropy with the pseudo-labels
        agreement = self.agreement(easy_outputs)  # consistency of the two heads
        contrast, contrast_stats = self.contrasted(easy_outputs, hard_outputs, progress)  # high-entropy contrast
        adversarial = self.align(easy_outputs, hard_outputs, progress)  # hard images drawn to easy ones
        terms = segmentation | agreement | contrast | adversarial
        return Losses(terms, stats | contrast_stats | entropies(easy=easy_outputs, hard=hard_outputs))

    def anchor_guidance(self, easy: Samples, ema: Prediction) -> dict[str, Tensor]:
        """Pseudo-labels (B, H, W) of each head, 255 where undecided or without data: what anchor and EMA say together.

        Both look at the very same augmented image as the trainee; or the anchor's part is its stored mask of stage 2,
        for which it may have looked longer.
        """
        of_ema = {head: logits.softmax(1) for head, logits in logits_by_head(ema).items()}
        if self.w.anchor == "stored":
            of_anchor = {head: mask_to_probabilities(easy["label"], of_ema[head]) for head in HEADS}
        else:
            anchor = forward_batch(self.anchor, easy["image"], without="features")
            of_anchor = {head: logits.softmax(1) for head, logits in logits_by_head(anchor).items()}
        return {head: fuse(of_anchor[head], of_ema[head], self.w.fuse, self.w.floor, easy["valid"]) for head in HEADS}


STAGES: dict[str, type[StudentStage]] = {"asda": AsdaStage, **STEPS}  # what `intra.step` names


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
    method = STAGES[w.step]
    images = method.images(config, split)
    print(f"{folder}: {' and '.join(f'{len(part)} {name}' for name, part in images.items())} images")
    steps, epoch_steps = intra_length(config, sum(len(part) for name, part in images.items() if name != "source"))
    metadata = data_record(config)
    stage = method(config, anchor)
    augment = {"source": config.teacher.augment}
    streams = {name: training_stream(config, part, name, augment.get(name, w.augment)) for name, part in images.items()}
    fit(stage, streams, folder, config, batch=w.batch, steps=steps, epoch_steps=epoch_steps, weights_metadata=metadata)
    write_weights(weights, stage.exported, metadata)


if __name__ == "__main__":
    run(train_intra, CONFIG, CONFIG.out)
