"""A weights file whose pickle would run code, wherever a user may name one: refused by name, and nothing runs.

Other hostile files have their tests beside the code that reads them, and are thrown at it by the thousand in
tests/test_fuzz.py; docs/reliability.md lists them.
"""

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from config.load import load_config
from config.schema import Config, NetConfig
from engine.build import build_segmenter
from eval import load_models
from scenes import load_network
from utils.errors import AsdaError

SMALL = "mobilenetv3_small_050"


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def state_of(marker: Path) -> dict[str, Any]:
    return {"conv1.weight": torch.zeros(1), "featuremodel": Evil(marker)}


def zipped(path: Path, marker: Path) -> None:
    torch.save(state_of(marker), path)


def legacy(path: Path, marker: Path) -> None:
    torch.save(state_of(marker), path, _use_new_zipfile_serialization=False)


def bare(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps(state_of(marker), protocol=2))


def evaluated(path: Path) -> None:
    config = load_config(["--source.root", "a", "--target.root", "b", "--out", str(path.parent / "run")])
    load_models(replace(config, eval=replace(config.eval, weights=str(path))))


ENTRIES: dict[str, Callable[[Path], object]] = {
    "net.weights": lambda path: build_segmenter(Config(net=NetConfig(backbone=SMALL, weights=str(path)))),
    "net.checkpoint": lambda path: build_segmenter(Config(net=NetConfig(backbone=SMALL, checkpoint=str(path)))),
    "net.checkpoint of DeepLab-v2": lambda path: build_segmenter(
        Config(net=NetConfig(backbone="resnet50", layout="deeplab_v2", checkpoint=str(path)))
    ),
    "eval.weights": evaluated,
    "predict.py --weights": lambda path: load_network(path, "cpu"),
}


@pytest.mark.parametrize(
    ("form", "suffix"), [(zipped, ".pth"), (legacy, ".pt"), (bare, ""), (bare, ".safetensors"), (zipped, ".onnx")]
)
@pytest.mark.parametrize("entry", ENTRIES)
def test_code_in_weights_is_not_run(
    tmp_path: Path, entry: str, suffix: str, form: Callable[[Path, Path], None]
) -> None:
    path, marker = tmp_path / f"evil{suffix}", tmp_path / "ran"
    form(path, marker)
    with pytest.raises(AsdaError) as raised:
        ENTRIES[entry](path)
    assert path.name in str(raised.value) and "\n" not in str(raised.value)
    assert not marker.exists()


@pytest.mark.parametrize("form", [zipped, legacy, bare])
def test_these_files_would_have_run_it(tmp_path: Path, form: Callable[[Path, Path], None]) -> None:
    path, marker = tmp_path / "evil.pth", tmp_path / "ran"
    form(path, marker)
    pickle.loads(path.read_bytes()) if form is bare else torch.load(path, weights_only=False)
    assert marker.exists()
