"""The network of a finished run as files to pass on: safetensors, ONNX and a model card.

    python export.py --run runs/demo --out export
    python predict.py --weights export/student.onnx scene.tif --out masks

Writes OUT/NAME.safetensors, OUT/NAME.onnx and OUT/README.md; NAME is student where stage 3 was run, else teacher. The
ONNX file is compared with the network before it is written. Needs onnx, onnxscript and onnxruntime.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from engine.cli import configure, run
from engine.layout import best_model
from scenes.network import CloudNetwork, load_network
from utils.errors import ConfigError, WeightsError, unwritable
from utils.files import put_in_place, write_text
from utils.version import VERSION

TOLERANCE = 1e-4  # of a probability


class Request(NamedTuple):
    """What the command line asks for."""

    weights: Path
    out: Path


def read_request(arguments: Sequence[str] | None = None, description: str | None = __doc__) -> Request:
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"asda {VERSION}", help="print the version, and end")
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    given = parser.parse_args(arguments)
    return Request(best_model(given.run).weights(given.run), given.out)


def export(request: Request) -> None:
    """Write the files, each whole or not at all.

    Raises:
        ConfigError: a package is missing.
        DataError: a file cannot be written.
        WeightsError: the ONNX file does not compute what the network computes.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  torch's exporter needs it, and would say so late
    except ImportError as error:
        raise ConfigError(f"export needs {error.name}, which is not installed; pip install onnx onnxscript") from None
    from nets.weights import load_segmenter, save_segmenter
    from scenes.export import model_card, to_onnx

    weights, out = request
    network, segmenter = load_network(weights, "cpu"), load_segmenter(weights)
    card = model_card(weights, network.images, segmenter.architecture)
    metadata = {"architecture": segmenter.architecture, **network.images.metadata}
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(out, error) from None
    save_segmenter(out / f"{weights.stem}.safetensors", segmenter, network.images.metadata)
    write_text(out / "README.md", card)
    path, model = out / f"{weights.stem}.onnx", to_onnx(segmenter, metadata)
    try:
        with TemporaryDirectory(dir=out, prefix=".unchecked_") as scratch:
            unchecked = Path(scratch) / path.name
            onnx.save_model(model, unchecked)
            if (difference := largest_difference(network, load_network(unchecked))) > TOLERANCE:
                found = f"would differ from {weights} by {difference:.2g} in a probability"
                fix = "try another release of torch, onnxscript or onnxruntime"
                raise WeightsError(f"{path}: {found}, expected {TOLERANCE:g} or less; {fix}")
            put_in_place(unchecked, path)
    except OSError as error:
        raise unwritable(path, error, model.ByteSize()) from error
    print(f"{out}: {weights.stem}.safetensors, {weights.stem}.onnx (within {difference:.1g} of the network), README.md")


def largest_difference(one: CloudNetwork, other: CloudNetwork) -> float:
    """Of the probabilities of noise, in windows of several sizes, some of them scaled."""
    size, rng = one.images.size, np.random.default_rng(0)
    differences = []
    for windows, height, width in ((1, size, size), (3, size, size // 2), (2, size + 7, size)):
        noise = rng.integers(0, 256, (windows, height, width, len(one.images.decoder.bands)), np.uint8)
        for target in ((height, width), (2 * height, 2 * width)):
            differences.append(np.abs(one.cloud(noise, target) - other.cloud(noise, target)).max())
    return float(max(differences))


if __name__ == "__main__":
    REQUEST = configure(__doc__, read_request)
    run(export, REQUEST, REQUEST.out, together=False)
