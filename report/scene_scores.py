"""The official score of 38-Cloud: patches put together to scenes, scored scene by scene, averaged over scenes.

It is not the score of the other tables: every pixel of a scene counts, black margins included, only the cloud class is
scored, a scene counts as much as any other, and a pixel is cloud from a probability of 13/255 on. Both that threshold
and the usual 1/2 are given.

Source: evaluation of Cloud-Net by the authors of 38-Cloud (version 1.5).
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

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
from utils.records import write_json

THRESHOLDS = {"12/255": 12, "1/2": 127}  # in 255ths; a pixel above it is cloud
SCORES = {  # name -> place in what `metrics.scores` gives
    "precision": ("precision", "cloud"),
    "recall": ("recall", "cloud"),
    "specificity": ("recall", "clear"),
    "jaccard": ("iou", "cloud"),
    "accuracy": ("pixel_accuracy",),
}
PLACE = re.compile(r"_(\d+)_by_(\d+)_LC")


def place_of(name: str) -> tuple[int, int]:
    """Row and column of a patch in its scene, from 0, by a name such as patch_192_10_by_12_LC08_...."""
    found = PLACE.search(name)
    if found is None:
        raise DataError(f"{name}: has no place in its scene, expected one such as 10_by_12; mend the name")
    return int(found[1]) - 1, int(found[2]) - 1


def stitched(patches: Sequence[tuple[tuple[int, int], np.ndarray]], rows: int, columns: int) -> np.ndarray:
    """Patches of one size (S, S), each at its (row, column) of a grid, as one array; 0 where there is no patch."""
    side = len(patches[0][1])
    whole = np.zeros((rows * side, columns * side), patches[0][1].dtype)
    for (row, column), patch in patches:
        whole[row * side : (row + 1) * side, column * side : (column + 1) * side] = patch
    return whole


def score_scenes(domain: Domain, models: Mapping[str, Segmenter], config: Config, folder: Path) -> None:
    """Write scenes.json and scenes.md, where the domain publishes the truth of whole scenes; nothing otherwise.

    One scene is in memory at a time, for every model.
    """
    truths = READERS[domain.config.reader].scene_truth(Path(domain.config.root))
    patches = [item for item in domain.images if item.scene in truths]
    if not patches:
        (folder / "scenes.json").unlink(missing_ok=True)  # one of an earlier evaluation must not stand for this one
        return
    every = listed(config, domain.role, "eval", labels=False)  # a patch without data is not predicted, but has a place
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    bar = tqdm(total=len(patches) * len(models), desc="scenes", unit="patch", dynamic_ncols=True)
    scenes = sorted({str(item.scene) for item in patches})
    for scene in scenes:
        truth = read_bands(truths[scene]).pixels[..., 0] > 0
        rows, columns = np.max([place_of(item.name) for item in every if item.scene == scene], axis=0) + 1
        for name, model in models.items():
            tiles = []
            for item in (item for item in patches if item.scene == scene):
                decoded = domain.seen_by(name).read(item)
                cloud = decided(probabilities(model, decoded.image, config.data), config.eval.head)[1]
                levels = (cloud * 255).round().byte().numpy()
                tiles.append((place_of(item.name), decoded.placed(levels, 0)))
                bar.update()
            whole, (height, width) = stitched(tiles, rows, columns), truth.shape
            if whole.shape[0] < height or whole.shape[1] < width:
                raise DataError(
                    f"{truths[scene]}: found patches of {whole.shape[1]}x{whole.shape[0]} pixels, expected at least "
                    f"the scene's {width}x{height}; patches of the scene are missing"
                )
            top, left = (whole.shape[0] - height) // 2, (whole.shape[1] - width) // 2  # the margin is no part of it
            whole = whole[top : top + height, left : left + width]
            for title, threshold in THRESHOLDS.items():
                measured = scores(confusion_matrix(label=truth, prediction=whole > threshold))
                shares = {of: score_at(measured, path) for of, path in SCORES.items()}
                found.setdefault(name, {}).setdefault(title, {})[scene] = shares
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
