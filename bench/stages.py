"""Both training stages on a few scenes of the generated pair, of any network and size, for the benchmarks of speed."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from child import REPOSITORY

from config.load import load_config
from config.schema import Config
from datasets.samples import EndlessSamples
from engine.build import build_segmenter, training_stream
from engine.domains import training_images
from engine.loop import fit
from engine.run import make_generated
from engine.stage import TrainingStage
from train_intra import AsdaStage
from train_teacher import TeacherStage

STAGES = ("teacher", "intra")
SCENES = 16  # of each domain


def network_settings(backbone: str, decoder: str) -> dict[str, Any]:
    """The settings of a network; deeplab_v2 at the output stride that CPUs can bear."""
    found = {"net.backbone": backbone, "net.decoder": decoder}
    return found | {"net.output_stride": 16} if decoder == "deeplab_v2" else found


def configured(folder: Path, settings: Mapping[str, Any]) -> Config:
    """The paper's method with `settings` on top; its pair, which is drawn, and its decoded images are in `folder`."""
    pair = folder / "pair"
    given = {"out": folder / "run", "generated.root": pair, "generated.train": SCENES, "generated.evaluation": 2}
    given |= {
        "source.root": pair / "source",
        "target.root": pair / "target",
        "data.cache": folder / "cache",
        **settings,
    }
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    config = load_config(["--config", str(REPOSITORY / "configs" / "demo.yaml"), *words])
    make_generated(config)
    return config


def built(config: Config, stage: str) -> tuple[TrainingStage, dict[str, EndlessSamples]]:
    """A stage at its start and its streams; stage 3 has an untrained teacher, and any half of the target is easy."""
    target = training_images(config, "target", labels=False)
    if stage == "teacher":
        images = {"source": training_images(config, "source", labels=True), "target": target}
        made: TrainingStage = TeacherStage(config)
    else:
        images = {name: replace(target, items=target.items[i::2]) for i, name in enumerate(("easy", "hard"))}
        made = AsdaStage(config, build_segmenter(config))
    augment = getattr(config, stage).augment
    return made, {name: training_stream(config, part, name, augment) for name, part in images.items()}


def train(stage: TrainingStage, streams: Mapping[str, Any], config: Config, name: str, steps: int) -> None:
    """`steps` steps in a folder of their own below `out`."""
    folder = Path(config.out) / f"{name}_{steps}"
    folder.mkdir(parents=True)
    batch = getattr(config, name).batch
    fit(stage, streams, folder, config, batch=batch, steps=steps, epoch_steps=steps)
