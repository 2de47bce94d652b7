"""Every file of configs/methods/ runs through the stages, and keeps what defines it."""

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import split_entropy
import train_intra
import train_teacher
from config.load import load_config
from config.schema import Config
from engine.build import bound_choice
from engine.layout import WARNINGS
from losses import registry
from losses.inputs import TrainingProgress
from losses.pseudo_label import fuse, mask_to_probabilities
from nets.weights import load_segmenter
from utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
METHODS = sorted(path.stem for path in (ROOT / "configs" / "methods").glob("*.yaml"))
Arguments = Callable[..., list[str]]

# What each method's stages minimise: stage 1, stage 3.
SEG = {"seg_main", "seg_aux"}
ADVERSARY = {"adv_main", "adv_aux", "dis_main", "dis_aux"}
TERMS: dict[str, tuple[set[str], set[str] | None]] = {
    "source_only": (SEG, None),
    "oracle": (SEG, None),
    "asda_plus": (SEG, SEG | {"stored_main", "stored_aux"}),
    "minent": (SEG | {"ent_main", "ent_aux"}, None),
    "advent": (SEG | ADVERSARY, None),
    "adaptsegnet": (SEG | ADVERSARY, None),
    "clan": (SEG | {"adv_main", "divergence", "dis_main"}, None),
    "esl": (SEG | ADVERSARY, SEG | ADVERSARY | {"stored_main", "stored_aux"}),
    "intrada": (SEG | ADVERSARY, SEG | ADVERSARY),
    "u2pl": (SEG, SEG | {"entropy_drop_main", "entropy_drop_aux", "contrast"}),
    "sdca": (SEG, SEG | {"contrast"}),
    "dacs": (SEG, SEG | {"classmix_main", "classmix_aux"}),
    "mic": (SEG, SEG | {"classmix_main", "classmix_aux", "masked_main", "masked_aux"}),
    "asda": (SEG | ADVERSARY, SEG | ADVERSARY | {"contrast", "consistency"}),
    "asda_plain": (SEG | ADVERSARY, SEG | ADVERSARY | {"contrast", "consistency"}),
    "asda_released": (SEG | ADVERSARY, SEG | ADVERSARY | {"contrast", "consistency"}),
}
SMALL = ["--net.layout", "timm", "--net.decoder", "fpn", "--net.output_stride=null"]  # in place of asda_released's


def one_of(names: dict[str, str]) -> str:
    return f"one of {', '.join(names)} or none"


def arguments_for(method: str, tmp_path: Path, tiny_arguments: Arguments, *extra: str) -> list[str]:
    arguments = [*tiny_arguments(tmp_path), "--method", method, *SMALL, *extra]
    if method == "oracle":
        rows = [f"images/scene_{i:02d}.png labels/scene_{i:02d}.png\n" for i in range(6)]
        (tmp_path / "target/train.txt").write_text("".join(rows[:4]))
        (tmp_path / "target/eval.txt").write_text("".join(rows[4:]))
        arguments += ["--target.train", "train.txt", "--target.eval", "eval.txt"]
    return arguments


def run_stages(arguments: list[str]) -> Config:
    config = load_config(arguments)
    train_teacher.train_teacher(config)
    split_entropy.split_entropy(config)
    train_intra.train_intra(config)
    return config


def terms_of(stage: Path) -> tuple[set[str], list[dict[str, Any]]]:
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return {key.removeprefix("raw/") for key in rows[0] if key.startswith("raw/")}, rows


def test_every_method_is_expected() -> None:
    assert sorted(TERMS) == METHODS


@pytest.mark.parametrize("choices", [registry.ALIGNMENTS, registry.CONTRASTS, registry.SELF_TRAINING])
def test_every_name_of_the_registry_leads_to_its_place(choices: dict[str, str]) -> None:
    for name, place in choices.items():
        found = bound_choice(choices, name, {}).func
        assert f"{found.__module__}.{found.__name__}" == place


@pytest.mark.parametrize("method", METHODS)
def test_method_runs_with_exactly_its_terms(method: str, tmp_path: Path, tiny_arguments: Arguments) -> None:
    config = run_stages(arguments_for(method, tmp_path, tiny_arguments))
    out = Path(config.out)
    first, third = TERMS[method]
    found, rows = terms_of(out / config.teacher.name)
    assert found == first and rows[-1]["step"] == config.teacher.steps
    assert (out / "intra").exists() == (third is not None)
    assert (out / "split").exists() == (
        method in ("esl", "intrada", "asda", "asda_plain", "asda_plus", "asda_released")
    )
    if third is None:
        return
    found, rows = terms_of(out / "intra")
    assert found == third
    steps = config.teacher.steps if method in ("esl", "intrada") else config.intra.steps
    assert rows[-1]["step"] == steps
    always = third - {"contrast", "masked_main", "masked_aux"}  # 0 with one class, and where nothing is confident
    assert all(any(row[f"weighted/{term}"] for row in rows) for term in always)
    assert all(math.isfinite(row["loss"]) for row in rows)
    before = load_segmenter(out / config.teacher.name / f"{config.teacher.name}.safetensors")
    after = load_segmenter(out / "intra/student.safetensors")
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_the_oracle_sees_target_labels_alone_and_refuses_to_be_scored_on_them(
    tmp_path: Path, tiny_arguments: Arguments
) -> None:
    arguments = arguments_for("oracle", tmp_path, tiny_arguments)
    with pytest.raises(ConfigError, match=r"compare\.py cross-validate"):
        train_teacher.train_teacher(load_config([*arguments, "--target.eval", "null"]))
    for path in (tmp_path / "source" / "images").iterdir():
        path.unlink()  # the source is not even listed
    train_teacher.train_teacher(load_config(arguments))
    assert (tmp_path / "run/oracle/oracle.safetensors").exists()


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (["--teacher.alignment", "clan"], "net.aux_level"),
        (["--net.decoder", "fnp"], "net.decoder is 'fnp', expected one of fpn, unet"),
        (["--teacher.batch", "1"], "teacher.batch is 1, expected more than speed.pieces where data.size is below 64"),
        (["--net.decoder_width", "48"], "net.decoder_width is 48, expected a multiple of 32, where decoder is fpn"),
        (["--net.output_stride", "16"], "net.output_stride is 16, expected null, where decoder is fpn"),
        (["--net.layout", "deeplab_v2"], "net.layout is 'deeplab_v2', expected timm, where decoder is fpn"),
        (["--teacher.alignment", "cosine"], one_of(registry.ALIGNMENTS)),
        (["--intra.contrast", "hecc"], one_of(registry.CONTRASTS)),
        (["--intra.self_training", "[classmix, classmix]"], "each rule once"),
        (["--intra.self_training", "[stored]"], "intra.step"),
        (["--teacher.supervise", "target"], "intra.enabled"),
        (["--split.scales", "[]"], "split.scales is .*at least one scale"),
        (["--split.scales", "[0.01]"], r"split.scales is .*numbers in \[0.1, 10\]"),
        (["--teacher.augment.gamma", "3"], r"teacher.augment.gamma is 3.0, expected a number in \[0, 2\]"),
    ],
)
def test_choices_that_cannot_be(extra: list[str], reason: str, tmp_path: Path, tiny_arguments: Arguments) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_config(tiny_arguments(tmp_path, *extra))


def test_an_unknown_option_names_the_known_ones(tmp_path: Path, tiny_arguments: Arguments) -> None:
    with pytest.raises(ConfigError, match=r"teacher.options is .*settings of what is chosen \(clan\) alone"):
        load_config(arguments_for("clan", tmp_path, tiny_arguments, "--teacher.options", "{clam: {lambda_local: 1}}"))
    config = load_config(arguments_for("clan", tmp_path, tiny_arguments, "--teacher.options", "{clan: {lambda: 1}}"))
    with pytest.raises(ConfigError, match=r"options.clan.lambda: unknown; clan has epsilon, lambda_local, divergence"):
        train_teacher.train_teacher(config)


@pytest.mark.parametrize("method", ["u2pl", "sdca", "esl", "dacs", "mic"])
def test_statistics_of_stage_3_follow_the_target_alone(method: str, tmp_path: Path, tiny_arguments: Arguments) -> None:
    config = load_config(arguments_for(method, tmp_path, tiny_arguments))
    train_teacher.train_teacher(config)
    name = config.teacher.name
    anchor = load_segmenter(tmp_path / f"run/{name}/{name}.safetensors")

    def running(source: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        stage = train_intra.STAGES[config.intra.step](config, anchor)
        valid, label = torch.ones(2, 32, 32, dtype=torch.bool), torch.zeros(2, 32, 32, dtype=torch.int64)
        batch = {
            "source": {"image": source, "valid": valid, "label": label},
            "target": {"image": target, "valid": valid, "label": label},
        }
        stage.step(batch, TrainingProgress(0, 10, 5, seed=0))
        return {name: value for name, value in stage.trainee.named_buffers() if "running" in name}

    one, other = (torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    first, other_source, other_target = running(one, one), running(other, one), running(one, other)
    assert all(torch.equal(first[name], other_source[name]) for name in first)
    assert any(not torch.equal(first[name], other_target[name]) for name in first)


def test_a_term_that_is_always_zero_is_reported_loudly(
    tmp_path: Path, tiny_arguments: Arguments, capfd: pytest.CaptureFixture[str]
) -> None:
    """No cloud, no contrast: with one class there is no negative."""
    arguments = tiny_arguments(tmp_path, "--intra.fuse", "agree", "--intra.floor", "1", "--split.ratio", "0.5")
    run_stages(arguments)
    text = (tmp_path / "run/intra" / WARNINGS).read_text()
    assert "term contrast was exactly 0 on each of 6 steps" in text and "term seg_main was exactly 0" in text
    assert "accepted was exactly 0 on each of 6 steps: every pseudo-label was ignored" in text
    assert "consistency" not in text
    shown = capfd.readouterr()
    assert "WARNING: term contrast was exactly 0 on each of 6 steps" in shown.out + shown.err
    assert not (tmp_path / "run/teacher" / WARNINGS).exists()


def test_the_worked_example_of_the_documentation(
    tmp_path: Path, tiny_arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/compared_methods.md adds a method by one class, one name and one file; here the text itself is run."""
    text = (ROOT / "docs/compared_methods.md").read_text("utf-8")
    blocks = {language: re.search(rf"```{language}\n(.*?)```", text, re.S) for language in ("python", "yaml")}
    assert blocks["python"] is not None and blocks["yaml"] is not None
    place = re.search(r'`"squares": "([\w.]+)"`', text)
    assert place is not None
    add_module(place[1].rpartition(".")[0], blocks["python"].group(1), monkeypatch)
    monkeypatch.setitem(registry.ALIGNMENTS, "squares", place[1])
    method = tmp_path / "squares.yaml"
    method.write_text(blocks["yaml"].group(1))
    config = run_stages(tiny_arguments(tmp_path, "--method", str(method)))
    found, rows = terms_of(Path(config.out) / "teacher")
    assert found == SEG | {"squares_main", "squares_aux"}
    assert all(-0.5 <= row["raw/squares_main"] <= -0.25 for row in rows)  # p = (1, 0) and (1/2, 1/2)


def test_the_worked_example_of_a_loss(
    tmp_path: Path, tiny_arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/extending.md adds a loss to stage 3 by one class and one name."""
    text = (ROOT / "docs/extending.md").read_text("utf-8")
    block = re.search(r"```python\n(# losses.*?)```", text, re.S)
    place = re.search(r'`"hard_entropy": "([\w.]+)"`', text)
    assert block is not None and place is not None
    add_module(place[1].rpartition(".")[0], block[1], monkeypatch)
    monkeypatch.setitem(registry.CONTRASTS, "hard_entropy", place[1])
    config = run_stages(tiny_arguments(tmp_path, "--intra.contrast", "hard_entropy"))
    found, rows = terms_of(Path(config.out) / "intra")
    assert found == SEG | ADVERSARY | {"contrast", "consistency"}
    assert all(0 < row["raw/contrast"] <= 1 for row in rows)


def add_module(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a module of a text, as if it were a file."""
    module = ModuleType(name)
    exec(text, module.__dict__)
    monkeypatch.setitem(sys.modules, name, module)


def test_a_stored_anchor_is_as_sure_as_its_mask_and_leaves_the_rest_to_the_ema() -> None:
    ema = torch.tensor([[0.9, 0.2, 0.3], [0.1, 0.8, 0.7]]).reshape(1, 2, 1, 3)
    found = mask_to_probabilities(torch.tensor([[[1, 0, 255]]]), ema)
    torch.testing.assert_close(found[0, :, 0], torch.tensor([[0, 1, 0.3], [1, 0, 0.7]]))
    union = fuse(found, ema, "union")
    assert union.tolist() == [[[1, 1, 1]]]  # the mask adds a cloud, the EMA adds one, and decides the open pixel
    assert fuse(found, ema, "agree").tolist() == [[[255, 255, 1]]]


def test_a_stored_anchor_needs_the_fusion(tmp_path: Path, tiny_arguments: Arguments) -> None:
    for extra in (["--intra.step", "source_target"], ["--intra.step", "intrada"]):
        with pytest.raises(ConfigError, match=r"intra.anchor is 'stored', expected online unless"):
            load_config(tiny_arguments(tmp_path, "--intra.anchor", "stored", *extra))
