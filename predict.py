"""Cloud masks of whole scenes: GeoTIFF in, cloud-optimised GeoTIFF out on the same grid; PNG or JPEG in, PNG out.

    python predict.py --run runs/demo scenes/ --out masks
    python predict.py --run runs/demo "scenes/*.tif" other.tif --out masks --probability --quicklook --buffer 2
    python predict.py --weights export/student.onnx scene.tif --out masks

Writes OUT/NAME_mask.tif: 0 clear, 1 cloud, 255 no data; beside it NAME_probability.tif, NAME_entropy.tif and
NAME_quicklook.png where asked for, and summary.csv. Bands, scaling and no-data rule are those of the run's target.
Started again, it goes on with the scenes that are not finished. A scene that fails is named, the others go on, and the
exit code is 1. Bands, scale, offset and no-data rule may be given where the scenes differ from the target in them.
"""

import re
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from config.fields import faults
from config.schema import DomainConfig
from datasets.products import Product
from datasets.values import grouped
from engine import processes
from engine.cli import configure, run
from engine.layout import best_model
from engine.memory import keep_memory_flat, memory_explained
from scenes import CloudNetwork, Options, Summary, load_network, predict_scene
from scenes.folder import SUMMARY, Row, SummaryFile, open_folder, outputs_of, stamp_of
from scenes.inputs import find_scenes, labels_of, nodata_rule
from scenes.predict import NOTES
from utils.errors import AsdaError, ConfigError, DataError
from utils.output import progress_bar
from utils.version import VERSION

READING = ("bands", "scale", "offset", "nodata")  # keys of a domain that are options here
OF_DOMAIN = re.compile(f"the domain's ({'|'.join(READING)})")
SMALL = 2**17  # bytes
ON_REQUEST = ("probability", "entropy", "quicklook")
LESS_MEMORY = "See what else is using it, or give a smaller --window, fewer threads (OMP_NUM_THREADS) or --device cpu"


class Request(NamedTuple):
    """What the command line asks for."""

    inputs: list[str]
    out: Path
    weights: Path
    device: str | None
    layers: tuple[str, ...]
    options: Options
    quiet: bool
    reading: dict[str, Any]  # what was given of READING, the others None
    labels: dict[str, str]  # band -> what stands for {band} in a pattern
    remote: bool


def read_request(arguments: Sequence[str] | None = None, description: str | None = __doc__) -> Request:
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("--version", action="version", version=f"asda {VERSION}", help="print the version, and end")
    add("inputs", nargs="+", metavar="INPUT", help="file, product, folder (with its sub-folders), glob or pattern")
    add("--out", type=Path, required=True, help="folder for the masks")
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument("--run", type=Path, help="folder of a run: its student, else teacher, oracle, source-only")
    whose.add_argument("--weights", type=Path, help="weights file instead: .safetensors, or .onnx of export.py")
    add("--window", type=int, help="side of a window in pixels; default: 512, or as trained")
    add("--overlap", type=int, help="pixels that windows share; default: a quarter of the training crop")
    add("--threshold", type=float, default=0.5, help="cloud is what is more probable than this (0.5)")
    add("--flips", action="store_true", help="mean over the mirror images; four times the work")
    add("--min-cloud", type=int, default=0, help="clear clouds of fewer pixels than this (0)")
    add("--buffer", type=int, default=0, help="widen clouds by so many pixels, after --min-cloud (0)")
    add("--outside", type=float, default=0.9, help="refuse scenes with more of their values out of range (0.9)")
    names = "the scenes' bands, in their order: red,green; in a pattern red=04,green=03"
    add("--bands", type=lambda text: text.split(","), help=names)
    add("--scale", type=float, help="of scenes without such a tag: a value is scale times what is stored, plus offset")
    add("--offset", type=float, help="see --scale; -1000 for Sentinel-2 since baseline 04.00")
    add("--nodata", type=nodata_rule, help="pixels without data: file, none, all_zero, any_zero, band:NAME or a number")
    add("--probability", action="store_true", help="write the probability of cloud, 0 to 1")
    add("--entropy", action="store_true", help="write its entropy: 0 certain, 1 undecided")
    add("--quicklook", action="store_true", help="write a small PNG of scene and mask")
    add("--remote", action="store_true", help="let inputs be URLs (https, s3, gs, az), with --bands")
    add("--device", help="cpu, cuda or cuda:N; default: a GPU where there is one")
    add("--quiet", action="store_true", help="say nothing but what failed")
    given = parser.parse_args(arguments)
    weights = given.weights or best_model(given.run).weights(given.run)
    layers = ("mask", *(name for name in ON_REQUEST if getattr(given, name)))
    options = Options(**{option.name: getattr(given, option.name) for option in fields(Options)})
    reading = {name: getattr(given, name) for name in READING}
    labels = labels_of(given.bands or ())
    reading["bands"] = [*labels] or given.bands
    for sentence in faults(DomainConfig(**reading), "--"):
        raise ConfigError(sentence)
    return Request(
        given.inputs, given.out, weights, given.device, layers, options, given.quiet, reading, labels, given.remote
    )


def predict(request: Request) -> None:
    """Predict every scene that is not finished; raises AsdaError if nothing can be predicted or, after all others, for
    the scenes that could not."""
    keep_memory_flat()
    bands = request.reading["bands"] or ()
    scenes, unclear = find_scenes(request.inputs, request.out, bands, request.labels, remote=request.remote)
    with processes.first_alone():
        open_folder(request.out, request.weights, request.options, request.reading | {"labels": request.labels or None})
    network = reading_as(request.reading, load_network(request.weights, request.device))
    summary = SummaryFile(request.out)
    failed = [*unclear] if processes.is_first() else []
    silent = request.quiet or not processes.is_first()

    def attempt(scene: tuple[str, Path | Product]) -> Row | str | None:
        """The row of a scene, or what is wrong with it; None if it was finished before."""
        name, path = scene
        try:
            outputs, stamp = outputs_of(request.out, request.layers, name, path), stamp_of(path)
            if summary.finished(name, stamp, outputs.values()):
                return None
            if name in summary.rows and summary.rows.pop(name)[1:] != stamp:  # what another file of this name left
                for old in outputs_of(request.out, ("mask", *ON_REQUEST), name, path).values():
                    old.unlink(missing_ok=True)
            return Row(predict_file(network, path, outputs, request.options, silent), *stamp)
        except Exception as error:  # GDAL and the codecs have errors of their own; the other scenes go on
            known = isinstance(error, AsdaError)
            return by_option(str(error)) if known else f"{path}: failed with {type(error).__name__}: {error}"

    mine = sorted(list(scenes.items())[processes.rank() :: processes.size()], key=lambda scene: not is_small(scene[1]))
    small = sum(is_small(path) for _, path in mine)
    with ThreadPoolExecutor(network.workers) as pool:  # a large scene keeps all cores busy by itself
        results = chain(pool.map(attempt, mine[:small]), map(attempt, mine[small:]))
        try:
            bar = progress_bar(results, total=len(mine), desc="scenes", unit="scene", disable=silent)
            for (name, _), result in zip(mine, bar, strict=True):
                try:
                    if isinstance(result, Row):
                        summary.add(name, result)
                except DataError as error:
                    result = str(error)
                if isinstance(result, str):
                    failed.append(result)
        finally:
            pool.shutdown(cancel_futures=True)
    rows = summary.join()
    noted = ((name, note) for name in rows.keys() & scenes for note in rows[name].summary.notes.split(NOTES) if note)
    for line in grouped(sorted(noted)) if not silent else []:
        print(f"note: {by_option(line)}")
    failures = [failure for failed_there in processes.gathered_objects(failed) for failure in failed_there]
    total = len(scenes) + len(unclear)
    if not request.quiet:
        print(f"{request.out}: {total - len(failures)} of {total} scenes have their masks; {SUMMARY} lists them")
    if failures:
        raise DataError(f"{len(failures)} of {total} scenes failed:\n  " + "\n  ".join(failures))


def reading_as(rules: dict[str, Any], network: CloudNetwork) -> CloudNetwork:
    """A network whose scenes are read by these rules where they are not None."""
    given = {name: rule for name, rule in rules.items() if rule is not None}
    if "bands" in given:
        given["file_bands"] = tuple(band.strip().lower() for band in given.pop("bands"))
    images = network.images
    return replace(network, images=replace(images, decoder=replace(images.decoder, **given)))


def by_option(sentence: str) -> str:
    """What is said of a domain's configuration, in the words of this command line."""
    sentence = sentence.replace("set data.bands to bands that both domains have, or mend", "mend")
    sentence = sentence.replace(", or give the domain's scaling", " as in training")
    return re.sub(OF_DOMAIN, r"--\1", sentence.replace("the domain's scale and offset", "--scale and --offset"))


def is_small(scene: Path | Product) -> bool:
    """Whether a scene is one of those of which several are predicted at once."""
    return isinstance(scene, Path) and scene.is_file() and scene.stat().st_size < SMALL


def predict_file(
    network: CloudNetwork, path: Path | Product, outputs: dict[str, Path], options: Options, silent: bool
) -> Summary:
    """Predict a scene, with a bar over its windows unless `silent`."""
    doing = f"windows of {options.window or network.window or network.images.size} pixels"

    def tick(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    bar = progress_bar(desc=Path(str(path)).stem, unit="window", leave=False, delay=1, disable=silent)
    with bar, memory_explained(path, doing, network.device, LESS_MEMORY):
        return predict_scene(network, path, outputs, options, tick=tick)


if __name__ == "__main__":
    REQUEST = configure(__doc__, read_request)
    run(predict, REQUEST, REQUEST.out)
