"""The official score of 38-Cloud: patches put together to scenes, scored scene by scene, averaged over scenes.

It is not the score of the other tables: every pixel of a scene counts, black margins included, only the cloud class is
scored, a scene counts as much as any other, and a pixel is cloud from a probability of 13/255 on. Both that threshold
and the usual 1/2 are given.

Source: evaluation of Cloud-Net by the authors of 38-Cloud (version 1.5).
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from config.schema import Config
from datasets.decode import read_bands
from datasets.readers import READERS
from engine.domains import listed
from engine.inference import decided, probabilities
from nets.segmenter import Segmenter
from report.evaluation import Domain
from report.metrics import confusion_matrix, score_at, scores
from report.tables import markdown_table, percent
from utils.errors import DataError
from utils.files import write_text
from utils.output import progress_bar
from utils.records import write_json

THRESHOLDS = {"12/255": 12, "1/2": 127}  # in 255ths; a pixel above it is cloud
SCORES = {  # name -> place in what `metrics.scores` gives
    "precision": ("precision", "cloud"),
    "recall": ("recall", "cloud"),
    "specificity": ("recall", "clear"),
    "jaccard": ("iou", "cloud"),
    "accuracy": ("pixel_accuracy",),
}


def place_of(name: str) -> tuple[int, int]:
    """Row and column of a patch in its scene, from 0, by a name such as patch_192_10_by_12_LC08_...."""
    found = re.search(r"_(\d+)_by_(\d+)_LC", name)
    if found is None:
        raise DataError(f"{name}: has no place in its scene, expected one such as 10_by_12; mend the name")
    return int(found[1]) - 1, int(found[2]) - 1


def score_scenes(domain: Domain, models: Mapping[str, Segmenter], config: Config, folder: Path) -> None:
    """Write scenes.json and scenes.md, where the domain publishes the truth of whole scenes; nothing otherwise. One
    scene is in memory at a time, for every model."""
    truths = READERS[domain.config.reader].scene_truth(Path(domain.config.root))
    patches = [item for item in domain.images if item.scene in truths]
    if not patches:
        (folder / "scenes.json").unlink(missing_ok=True)  # one of an earlier evaluation must not stand for this one
        return
    every = listed(config, domain.role, "eval", labels=False)  # a patch without data is not predicted, but has a place
    scenes = sorted({str(item.scene) for item in patches})
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {name: {of: {} for of in THRESHOLDS} for name in models}
    bar = progress_bar(total=len(patches) * len(models), desc="scenes", unit="patch")
    for scene in scenes:
        truth = read_bands(truths[scene]).pixels[..., 0] > 0
        rows, columns = np.max([place_of(item.name) for item in every if item.scene == scene], axis=0) + 1
        for name, model in models.items():
            tiles: dict[tuple[int, int], np.ndarray] = {}
            for item in (item for item in patches if item.scene == scene):
                decoded = domain.seen_by(name).read(item)
                probability = probabilities(model, decoded.image, config.data, decoded.valid)
                cloud = decided(probability, config.eval.head)[1]
                tiles[place_of(item.name)] = decoded.placed((cloud * 255).round().byte().numpy(), 0)
                bar.update()
            empty = np.zeros_like(next(iter(tiles.values())))
            whole = np.block([[tiles.get((row, column), empty) for column in range(columns)] for row in range(rows)])
            height, width = truth.shape
            top, left = np.subtract(whole.shape, truth.shape) // 2  # the margin is no part of the scene
            if min(top, left) < 0:
                raise DataError(
                    f"{truths[scene]}: found patches of {whole.shape[1]}x{whole.shape[0]} pixels, expected at least "
                    f"the scene's {width}x{height}; patches of the scene are missing"
                )
            whole = whole[top : top + height, left : left + width]
            for title, threshold in THRESHOLDS.items():
                measured = scores(confusion_matrix(label=truth, prediction=whole > threshold))
                found[name][title][scene] = {of: score_at(measured, path) for of, path in SCORES.items()}
    bar.close()
    write_json(folder / "scenes.json", found)
    table = markdown_table(scene_table(found), left=2 + len(SCORES))
    text = f"38-Cloud, official: mean over {len(scenes)} scenes, percent\n\n{table}\n"
    write_text(folder / "scenes.md", text)
    print(f"\n{text}")


def scene_table(found: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> list[list[str]]:
    """Header and rows of the means over scenes, by model and threshold; a mean over a missing share is a dash."""
    rows: list[list[str]] = [["model", "cloud above", *SCORES]]
    for model, thresholds in found.items():
        for title, scenes in thresholds.items():
            means = (float(np.mean([scene[name] for scene in scenes.values()])) for name in SCORES)
            rows.append([model, title, *map(percent, means)])
    return rows
