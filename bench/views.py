"""What each view of the target scores, and which is chosen without labels: mIoU of runs of stage 1.

    python train_teacher.py --config configs/hrc_to_38cloud.yaml --method source_only --target.scaling source --out RUN
    python bench/views.py RUN ...

A run's network was trained on the source alone, in the running statistics of its training. Each view of
`engine.target_view` is scored on the labelled evaluation images of the target, and beside it the target's own colours.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config.load import load_config
from config.schema import Config
from datasets.images import ImageSet
from engine.domains import evaluation_images, rules_of, training_images
from engine.target_view import View, candidate_views, cloud_of, recoloured, scale_agreement
from nets.segmenter import Segmenter
from nets.weights import load_segmenter
from report.metrics import confusion_matrix, scores

OWN = View("own", "trained")


def miou(segmenter: Segmenter, images: ImageSet, config: Config) -> float:
    """In percent, over the labelled ones of the images."""
    matrix = np.zeros((2, 2), np.int64)
    for item in images:
        decoded = images.read(item)
        if decoded.label is not None:
            cloud = cloud_of(segmenter, decoded, config)
            matrix += confusion_matrix(label=decoded.label, prediction=(cloud > 0.5).astype(np.uint8))
    return 100 * float(scores(matrix)["miou"])


def views_of(run: Path) -> tuple[dict[View, float], dict[View, float]]:
    """mIoU and agreement over scales of each view of a run; of the target's own colours the former alone."""
    folder = run / "source_only"
    config = load_config(["--config", str(folder / "config.yaml"), "--out", str(run)])
    segmenter = load_segmenter(folder / "source_only.safetensors").eval()
    source, scored = training_images(config, "source", labels=True), evaluation_images(config, "target")
    images = training_images(config, "target", labels=False)
    plain = rules_of(config, "target").scaling
    found, agreement = {OWN: miou(segmenter, recoloured(scored, plain), config)}, {}
    for view, (scaling, network) in candidate_views(segmenter, source, images, config).items():
        found[view] = miou(network, recoloured(scored, scaling), config)
        agreement[view] = scale_agreement(network, recoloured(images, scaling), config)
    return found, agreement


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run of stage 1, source_only")
    losses = []
    for run in parser.parse_args().runs:
        found, agreement = views_of(run)
        chosen = max(agreement, key=lambda view: agreement[view])
        for view, score in found.items():
            known = f"{agreement[view]:.3f}" if view in agreement else "-"
            mark = " chosen" * (view == chosen)
            print(f"{run!s:40s} {view.colours:8s} {view.statistics:8s} {score:5.1f} {known:>6s}{mark}", flush=True)
        losses.append(max(found.values()) - found[chosen])
    print(f"the choice loses {np.mean(losses):.1f} on average, {max(losses):.1f} at most, against the best view")


if __name__ == "__main__":
    main()
