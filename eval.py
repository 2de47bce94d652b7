"""Evaluation: scores, masks, entropy maps, t-SNE and Grad-CAM of every model of a run, in one report.

    python eval.py --config configs/demo.yaml
    python eval.py --config configs/demo.yaml --eval.parts masks,tsne
    python eval.py --config configs/demo.yaml --eval.weights runs/demo/intra/student.safetensors --out runs/look

The last one takes any weights file; with --target.root FOLDER --target.train null --target.eval null any folder of
images/, with labels/ or without. Labels, where there are any, are used here alone.
Writes OUT/eval/: report.html, metrics.{json,md,csv,tex}, images_*.csv, masks/, errors/, entropy/, tsne.png, gradcam/.
"""

if __name__ == "__main__":
    from engine.cli import configure

    CONFIG = configure(__doc__)  # before torch is imported: --help and faults of the configuration answer at once

import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from config.schema import Config
from engine import processes
from engine.build import device_of, trained
from engine.cli import run
from engine.layout import MODELS, models_in
from engine.memory import memory_explained
from engine.run import make_generated
from nets.segmenter import Segmenter
from nets.weights import load_segmenter
from report.evaluation import DomainScores, Evaluation, evaluate_domain
from report.figures import FIGURES
from report.page import write_report
from report.protocol import LESS_MEMORY, check_view, evaluation_domains, seen_as_trained
from report.records import Picture, remember_pictures
from report.scene_scores import score_scenes
from report.tables import write_tables
from utils.errors import ConfigError, DataError, EvaluationError, MissingError, WeightsError
from utils.files import write_text


def evaluate(config: Config) -> None:
    """Make the wanted parts; one that fails says why, lets the others go on, and is an EvaluationError at the end."""
    make_generated(config)
    folder, device = Path(config.out) / "eval", device_of(config)
    doing = f"batch 1 of data.size {config.data.size}"
    with memory_explained(folder, doing, device, LESS_MEMORY):
        models = load_models(config)
    domains = [seen_as_trained(domain, config) for domain in evaluation_domains(config)]
    wanted = config.eval.parts.split(",")
    folder.mkdir(parents=True, exist_ok=True)
    failures, missing = dict[str, str](), dict[str, str]()
    results: list[DomainScores] = []

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

    def predict() -> None:
        results.extend(evaluate_domain(domain, models, config, folder, wanted) for domain in domains)

    evaluation = Evaluation(config, folder, models, domains, results)

    def draw(figures: Iterable[Callable[[Evaluation], list[Picture]]]) -> list[Picture]:
        return [picture for figure in figures for picture in figure(evaluation)]

    parts: dict[str, Callable[[], list[Picture] | None]] = {
        "scores": lambda: write_tables(folder, results, config),
        "scenes": lambda: score_scenes(domains[0], models, config, folder),
        **{part: partial(draw, figures) for part, figures in FIGURES.items()},
        "report": lambda: write_report(folder, config, failures, missing),
    }
    from_predictions = {"scores", "masks", "entropy"} & set(wanted)
    if not processes.is_first():  # these help to predict, and the first one tells what went wrong
        with suppress(Exception):
            predict() if from_predictions else None
        return
    if from_predictions:
        attempt("predictions", predict)
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
    device, out = device_of(config), Path(config.out)
    if config.eval.weights is not None:
        path = Path(config.eval.weights)
        if not path.is_file():
            raise WeightsError(f"{path}: no such weights file; mend eval.weights")
        if any((out / model.stage).exists() for model in MODELS.values()):
            raise ConfigError(f"out is {config.out!r}, a run of its own; give another --out for eval.weights")
        check_view(config, path.parent)
        return {path.stem: load_segmenter(path).to(device)}
    for model in MODELS.values():
        check_view(config, out / model.stage)
    models = {model.name: trained(config, model.name).to(device) for model in models_in(out)}
    if not models:
        raise DataError(f"{out}: holds no trained model; run bash.sh, or train_teacher.py, with this --out first")
    return models


if __name__ == "__main__":
    run(evaluate, CONFIG, CONFIG.out)
