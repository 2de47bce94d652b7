"""Cloud masks of whole scenes: GeoTIFF in, cloud-optimised GeoTIFF out on the same grid; PNG or JPEG in, PNG out.

    python predict.py --run runs/demo scenes/ --out masks
    python predict.py --run runs/demo "scenes/*.tif" other.tif --out masks --probability --quicklook --buffer 2
    python predict.py --weights export/student.onnx scene.tif --out masks

Writes OUT/NAME_mask.tif: 0 clear, 1 cloud, 255 no data; beside it NAME_probability.tif, NAME_entropy.tif and
NAME_quicklook.png where asked for, and summary.csv. Bands, scaling and no-data rule are those of the run's target.
Started again, it goes on with the scenes that are not finished. A scene that fails is named, the others go on, and the
exit code is 1.
"""

from __future__ import annotations

import argparse
import csv
import glob
import hashlib
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datasets.files import SUFFIXES, by_name
from engine import processes
from engine.cli import configure, run
from engine.layout import best_model
from engine.memory import keep_memory_flat, memory_explained
from scenes import Options, Summary, load_network, predict_scene
from scenes.rasters import is_picture
from utils.errors import CONTROL, AsdaError, ConfigError, DataError
from utils.files import write_text
from utils.records import read_json, reading

SETTINGS, SUMMARY = "predict.json", "summary.csv"
ON_REQUEST = ("probability", "entropy", "quicklook")
LESS_MEMORY = "See what else is using it, or give a smaller --window, fewer threads (OMP_NUM_THREADS) or --device cpu"


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    inputs: list[str]
    out: Path
    weights: Path
    device: str | None
    layers: tuple[str, ...]
    options: Options


def read_request(arguments: Sequence[str] | None = None, description: str | None = __doc__) -> Request:
    """
    Raises:
        ConfigError, DataError: a value that means nothing, or a run without weights.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="file, folder (searched with its sub-folders) or glob"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the masks")
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument(
        "--run", type=Path, help="folder of a run; its student is taken, else teacher, oracle, source-only"
    )
    whose.add_argument("--weights", type=Path, help="weights file instead: .safetensors, or .onnx of export.py")
    parser.add_argument(
        "--window", type=int, help="side of a window in pixels; default: what the network was trained on"
    )
    parser.add_argument("--overlap", type=int, help="pixels that windows share; default: a quarter of the window")
    parser.add_argument("--threshold", type=float, default=0.5, help="cloud is what is more probable than this (0.5)")
    parser.add_argument("--flips", action="store_true", help="mean over the mirror images; four times the work")
    parser.add_argument("--min-cloud", type=int, default=0, help="clear clouds of fewer pixels than this (0)")
    parser.add_argument("--buffer", type=int, default=0, help="widen clouds by so many pixels, after --min-cloud (0)")
    parser.add_argument("--probability", action="store_true", help="write the probability of cloud, 0 to 1")
    parser.add_argument("--entropy", action="store_true", help="write its entropy: 0 certain, 1 undecided")
    parser.add_argument("--quicklook", action="store_true", help="write a small PNG of scene and mask")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; default: a GPU where there is one")
    given = parser.parse_args(arguments)
    return Request(
        inputs=given.inputs,
        out=given.out,
        weights=given.weights or best_model(given.run).weights(given.run),
        device=given.device,
        layers=("mask", *(name for name in ON_REQUEST if getattr(given, name))),
        options=Options(
            window=given.window,
            overlap=given.overlap,
            threshold=given.threshold,
            flips=given.flips,
            min_cloud=given.min_cloud,
            buffer=given.buffer,
        ),
    )


def predict(request: Request) -> None:
    """Predict every scene that is not finished.

    Raises:
        AsdaError: nothing can be predicted, or, after all other scenes, some could not.
    """
    keep_memory_flat()
    scenes = find_scenes(request.inputs, request.out)
    with processes.first_alone():
        open_folder(request)
    network = load_network(request.weights, request.device)
    doing = f"windows of {request.options.window or network.images.size} pixels"
    summary = request.out / SUMMARY
    parts = sorted(summary.parent.glob(f"{summary.stem}.*{summary.suffix}"))  # of several processes that were stopped
    rows = {name: row for part in [*parts, summary] for name, row in read_summary(part).items()}
    mine = summary if processes.is_first() else summary.with_suffix(f".{processes.rank()}{summary.suffix}")
    failures = []
    shared = list(scenes.items())[processes.rank() :: processes.size()]
    style: dict[str, Any] = {"dynamic_ncols": True, "disable": not processes.is_first()}
    with tqdm(total=len(shared), desc="scenes", unit="scene", **style) as scenes_bar:
        for name, path in shared:
            try:
                outputs = outputs_of(request, name, path)
                if name not in rows or not all(output.is_file() for output in outputs.values()):
                    with tqdm(desc=name, unit="window", leave=False, **style) as bar:

                        def tick(done: int, total: int, bar: tqdm = bar) -> None:
                            bar.total = total
                            bar.update(done - bar.n)

                        with memory_explained(path, doing, network.device, LESS_MEMORY):
                            rows[name] = predict_scene(network, path, outputs, request.options, tick=tick)
                    write_summary(mine, rows)
            except Exception as error:  # GDAL and the codecs have errors of their own; the other scenes go on
                known = isinstance(error, AsdaError)
                failures.append(str(error) if known else f"{path}: failed with {type(error).__name__}: {error}")
                tqdm.write(f"error: {failures[-1]}", file=sys.stderr)
            scenes_bar.update()
    everyone = processes.gathered_objects((rows, failures))
    failures = [failure for _, failed in everyone for failure in failed]
    if processes.is_first() and (parts or processes.size() > 1):
        write_summary(summary, {name: row for others, _ in everyone for name, row in others.items()})
        for part in summary.parent.glob(f"{summary.stem}.*{summary.suffix}"):
            part.unlink()
    print(
        f"{request.out}: {len(scenes) - len(failures)} of {len(scenes)} scenes have their masks; {SUMMARY} lists them"
    )
    if failures:
        raise DataError(f"{len(failures)} of {len(scenes)} scenes failed:\n  " + "\n  ".join(failures))


def find_scenes(inputs: Sequence[str], out: Path) -> dict[str, Path]:
    """The files to predict, by name: the path below the folder that was given, or the file's own, without suffix.

    Raises:
        ConfigError, DataError: an input is not there, two have one name, or masks would lie among the scenes.
    """
    found: dict[str, list[Path]] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            if out.resolve().is_relative_to(path.resolve()):
                raise ConfigError(
                    f"--out {out} lies in {path}, where its masks would be taken for scenes; give another"
                )
            named = by_name(path)
            if not named:
                raise DataError(f"{path}: holds no {', '.join(SUFFIXES)} file; name files of other kinds one by one")
        else:
            files = [path] if path.is_file() else sorted(map(Path, glob.glob(text, recursive=True)))
            if not files:
                raise DataError(f"{text}: no such file, folder or glob")
            named = {}
            for file in files:
                named.setdefault(file.stem, []).append(file)
        for name, paths in named.items():
            found.setdefault(name, []).extend(paths)
    if strange := [str(path) for name, paths in found.items() for path in paths if CONTROL.search(name)]:
        raise ConfigError(f"{strange[0]!r}: has a control character in its name; rename it")
    scenes = {name: sorted(set(paths)) for name, paths in found.items()}
    if shared := [", ".join(map(str, paths)) for paths in scenes.values() if len(paths) > 1]:
        raise ConfigError(f"{'; '.join(shared)}: would have one mask file; rename them, or give another --out for each")
    return {name: paths[0] for name, paths in sorted(scenes.items())}


def open_folder(request: Request) -> None:
    """Make the folder of the masks, or go on with it.

    Raises:
        ConfigError: it was begun with other settings, or cannot be made.
        DataError: it cannot be written to.
    """
    record = request.out / SETTINGS
    digest = hashlib.sha256(request.weights.read_bytes()).hexdigest() if request.weights.is_file() else None
    settings = {"weights": digest, **asdict(request.options)}
    try:
        request.out.mkdir(parents=True, exist_ok=True)
        if not record.exists():
            write_text(record, json.dumps(settings, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"{request.out}: cannot be used as --out ({error}); give another folder") from None
    with reading(record, "the settings of predict.py", "give another --out", ConfigError):
        before = read_json(record)
        changed = [
            f"{key} was {before.get(key)}, is {value}" for key, value in settings.items() if before.get(key) != value
        ]
    if changed:
        raise ConfigError(
            f"{request.out}: begun with other settings: {'; '.join(changed)}. Give the same, or another --out"
        )


def outputs_of(request: Request, name: str, path: Path) -> dict[str, Path]:
    """The files of a scene, by layer."""
    suffix = {layer: ".png" if layer == "quicklook" or is_picture(path) else ".tif" for layer in request.layers}
    return {layer: request.out / f"{name}_{layer}{suffix[layer]}" for layer in request.layers}


def read_summary(path: Path) -> dict[str, Summary]:
    """
    Raises:
        DataError: it is no summary.
    """
    if not path.exists():
        return {}
    with reading(path, "a summary of predict.py", "remove it to predict all scenes anew"):
        rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8"))))
        return {row["scene"]: Summary(*(float(row[field]) for field in Summary._fields)) for row in rows}


def write_summary(path: Path, rows: dict[str, Summary]) -> None:
    """
    Raises:
        DataError: it cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["scene", *Summary._fields])
    for name, row in sorted(rows.items()):
        table.writerow([name, *(f"{value:.6g}" for value in row)])
    write_text(path, text.getvalue())


if __name__ == "__main__":
    REQUEST = configure(__doc__, lambda description: read_request(description=description))
    run(predict, REQUEST, REQUEST.out)
