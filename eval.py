"""Evaluation: scores and masks of every model of a run, on the grid of the original images.

    python eval.py --config configs/demo.yaml

Writes OUT/eval/: metrics.json, metrics.md, metrics.csv, masks/. Labels, where there are any, are used here alone.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.cli import configure

    CONFIG = configure(__doc__)  # before torch is imported: --help and faults of the configuration answer at once

from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.files import Item, check_items, list_domain, read_image, read_item
from nets.segmenter import Segmenter
from utils.cli import run
from utils.config import Config, DomainConfig
from utils.engine import device_of
from utils.errors import DataError
from utils.metrics import confusion_matrix
from utils.plots import colour_mask, mask_overview, write_png
from utils.predict import decide, probabilities
from utils.run import make_generated, trained
from utils.tables import DomainScores, write_tables

MODELS = (
    ("source_only", "source_only", "source_only"),
    ("teacher", "teacher", "teacher"),
    ("student", "intra", "student"),
)


def evaluation_items(domain: DomainConfig, role: str) -> tuple[list[Item], str] | None:
    """The images a domain is scored on and the protocol; None for a source without held-back images."""
    rows = domain.eval if domain.eval is not None else domain.train
    if domain.eval is None and role == "source":
        return None
    protocol = "held-back images" if domain.eval is not None else "transductive: the images adapted to, labels hidden"
    items = list_domain(domain.root, rows, labels=True, partial=role == "target")
    check_items(items, domain.label_map, f"{role} evaluation ({domain.root})")
    return items, protocol


def predict_all(segmenter: Segmenter, items: list[Item], config: Config, folder: Path, name: str) -> np.ndarray:
    """Write the mask of every image, and return the confusion matrix of those that have a label."""
    matrix = np.zeros((2, 2), np.int64)
    domain = config.target if folder.name == "target" else config.source
    for item in tqdm(items, desc=f"eval {folder.name} {name}", unit="image", dynamic_ncols=True):
        image, label = read_item(item, domain.label_map)
        mask = decide(probabilities(segmenter, image, config.data), config.eval.head).cpu().numpy()
        write_png(folder / name / f"{item.name}.png", colour_mask(mask))
        if label is not None:
            matrix += confusion_matrix(label=label, prediction=mask)
    return matrix


def evaluate(config: Config) -> None:
    """Score every trained model of a run and draw its masks."""
    make_generated(config)
    device = device_of(config)
    out = Path(config.out)
    models = {
        name: trained(config, stage, weights).to(device)
        for name, stage, weights in MODELS
        if (out / stage / f"{weights}.safetensors").exists()
    }
    if not models:
        raise DataError(f"{out}: holds no trained model; run bash.sh, or train_teacher.py, with this --out first")
    folder = out / "eval"
    results = []
    for role, domain in (("target", config.target), ("source", config.source)):
        found = evaluation_items(domain, role)
        if found is None:
            continue
        items, protocol = found
        masks = folder / "masks" / role
        matrices = {name: predict_all(model, items, config, masks, name) for name, model in models.items()}
        labelled = sum(item.label is not None for item in items)
        results.append(DomainScores(role, domain.root, protocol, len(items), labelled, matrices))
        overview(items, domain, masks, list(models), config.eval.pictures, f"{role}: {protocol}")
    print()
    print(write_tables(folder, results, config))
    print(f"masks: {folder / 'masks'}, pictures: {', '.join(str(folder / 'masks' / f'{r.role}.png') for r in results)}")


def overview(items: list[Item], domain: DomainConfig, masks: Path, models: list[str], count: int, caption: str) -> None:
    """Draw image, label and masks of evenly spaced images into one picture."""
    chosen = [items[i] for i in np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)]
    pairs = [read_item(item, domain.label_map) for item in chosen]
    columns = {"image": [image for image, _ in pairs]}
    if any(item.label is not None for item in items):
        unknown = [np.full(image.shape[:2], 255, np.uint8) for image, _ in pairs]
        labels = [blank if label is None else label for blank, (_, label) in zip(unknown, pairs, strict=True)]
        columns["label"] = [colour_mask(label) for label in labels]
    for name in models:
        paths = (masks / name / f"{item.name}.png" for item in chosen)
        columns[name.replace("_", "-")] = [read_image(path) for path in paths]
    mask_overview(masks.parent / f"{masks.name}.png", [item.name for item in chosen], columns, caption)


if __name__ == "__main__":
    run(evaluate, CONFIG)
