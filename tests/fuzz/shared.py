"""What many cases share; made once, before processes are forked for them."""

from functools import cache
from pathlib import Path

from config.load import load_config
from config.schema import Config
from nets.segmenter import Segmenter
from tests.fuzz.seeds import words


@cache
def valid(folder: Path) -> dict[str, bytes]:
    """The valid files of a folder, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@cache
def settings_of(out: str) -> Config:
    """The configuration of the tiny run, with another folder."""
    return load_config(words(out=out))


@cache
def small() -> Segmenter:
    return Segmenter("mobilenetv3_small_050").eval()


@cache
def deeplab() -> Segmenter:
    return Segmenter("resnet50", layout="deeplab_v2")


def prepare(base: Path) -> None:
    small(), deeplab(), settings_of(str(base / "box" / "run"))
    for folder in ("image", "label", "config", "weights"):
        valid(base / folder)
