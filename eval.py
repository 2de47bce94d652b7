"""Evaluation: scores, masks, entropy maps, t-SNE and Grad-CAM of every model of a run, in one report.

    python eval.py --config configs/demo.yaml
    python eval.py --config configs/demo.yaml --eval.parts masks,tsne
    python eval.py --config configs/demo.yaml --eval.weights runs/demo/intra/student.safetensors --out runs/look

The last one takes any weights file; with --target.root FOLDER --target.train null --target.eval null any folder of
images/, with labels/ or without.
Writes OUT/eval/: report.html, metrics.{json,md,csv,tex}, images_*.csv, masks/, errors/, entropy/, tsne.png, gradcam/.
Labels, where there are any, are used here alone.
"""

from __future__ import annotations

if __name__ == "__main__":
    from engine.cli import configure

    CONFIG = configure(__doc__)  # before torch is imported: --help and faults of the configuration answer at once

import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from config.schema import Config
from engine import processes
from engine.cli import run
from engine.layout import MODELS, models_in
from engine.loop import device_of
from engine.memory import memory_explained
from engine.run import make_generated, trained
from nets.segmenter import Segmenter
from nets.weights import load_segmenter
from report.evaluation import Survey, survey
from report.figures import draw_entropy, draw_gradcam, draw_masks, draw_tsne
from report.page import Picture, remember_pictures, write_report
from report.protocol import LESS_MEMORY, check_view, evaluation_domains, seen_as_trained
from report.scene_scores import score_scenes
from report.tables import write_tables
from utils.errors import ConfigError, DataError, EvaluationError, MissingError, WeightsError
from utils.files import write_text

FROM_PREDICTIONS = {"scores", "masks", "entropy"}


def evaluate(config: Config) -> None:
    """Make the wanted parts; one that fails says why and leaves the others standing.

    Raises:
        EvaluationError: at the end, if a part failed.
    """
    make_generated(config)
    folder, device = Path(config.out) / "eval", device_of(config)
    doing = f"batch 1 of data.size {config.data.size}"
    with memory_explained(folder, doing, device, LESS_MEMORY):
        models = load_models(config)
    domains = [seen_as_trained(domain, config) for domain in evaluation_domains(config)]
    wanted = config.eval.parts.split(",")
    folder.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    missing: dict[str, str] = {}

    def attempt(part: str, make: Callable[[], list[Picture] | None]) -> None:
        pictures: list[Picture] | None = None
        try:
            with memory_explained(f"{folder}, {part}", doing, device, LESS_MEMORY):
                pictures = make()
            (folder / f"{part}_failed.txt").unlink(missing_ok=True)
        except MissingError as error:
            missing[part] = str(error)
            print(f"{part}: left out: {error}")
        except Exception as error:  # whatever it was, the other parts go on; the reason is kept
            failures[part] = str(error) or type(error).__name__
            print(f"{part}: failed, the other parts go on: {failures[part]}")
            write_text(folder / f"{part}_failed.txt", traceback.format_exc())
        remember_pictures(folder, part, pictures or [])

    surveys: list[Survey] = []

    def look() -> None:
        options = {"masks": "masks" in wanted, "entropy": "entropy" in wanted}
        surveys.extend(survey(domain, models, config, folder, **options) for domain in domains)

    parts: dict[str, Callable[[], list[Picture] | None]] = {
        "scores": lambda: write_tables(folder, surveys, config),
        "scenes": lambda: score_scenes(domains[0], models, config, folder),
        "masks": lambda: [figure for result in surveys for figure in draw_masks(result, config, folder)],
        "entropy": lambda: draw_entropy(surveys, models, config, folder),
        "tsne": lambda: draw_tsne(domains, models, config, folder),
        "gradcam": lambda: [figure for domain in domains for figure in draw_gradcam(domain, models, config, folder)],
        "report": lambda: write_report(folder, config, failures, missing),
    }
    from_predictions = FROM_PREDICTIONS & set(wanted)
    if not processes.is_first():  # these help to predict, and the first one tells what went wrong
        with suppress(Exception):
            look() if from_predictions else None
        return
    if from_predictions:
        attempt("predictions", look)
    for part, make in parts.items():
        if "predictions" in failures and part in from_predictions:
            remember_pictures(folder, part, [])  # those of an earlier evaluation must not stand for this one's
        elif part in wanted:
            attempt(part, make)

    if "scores" in wanted and not {"scores", "predictions"} & set(failures):
        print(f"\n{(folder / 'metrics.md').read_text('utf-8')}")
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    if failures:
        raise EvaluationError(f"{', '.join(failures)} failed; the reasons stand above and in {folder}/*_failed.txt")


def load_models(config: Config) -> dict[str, Segmenter]:
    """The run's trained models in the order of their making, or the one of `eval.weights`."""
    device = device_of(config)
    if config.eval.weights is not None:
        path = Path(config.eval.weights)
        if not path.is_file():
            raise WeightsError(f"{path}: no such weights file; mend eval.weights")
        if any((Path(config.out) / model.stage).exists() for model in MODELS.values()):
            raise ConfigError(f"out is {config.out!r}, a run of its own; give another --out for eval.weights")
        check_view(config, path.parent)
        return {path.stem: load_segmenter(path).to(device)}
    out = Path(config.out)
    for model in MODELS.values():
        check_view(config, out / model.stage)
    models = {model.name: trained(config, model.name).to(device) for model in models_in(out)}
    if not models:
        raise DataError(f"{out}: holds no trained model; run bash.sh, or train_teacher.py, with this --out first")
    return models


if __name__ == "__main__":
    run(evaluate, CONFIG, CONFIG.out)
