"""The keys of a run: impossible values, the shipped files, and what --help says."""

import dataclasses
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from config.fields import flatten
from config.load import load_config
from config.schema import Config, GeneratedConfig
from utils.errors import ConfigError

ROOT = Path(__file__).parents[2]
DOMAINS = ["--source.root", "s", "--target.root", "t"]
PAIRS = sorted((ROOT / "configs").glob("*.yaml"))
METHODS = sorted((ROOT / "configs/methods").glob("*.yaml"))


def fault_of(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config([*DOMAINS, *arguments])
    return str(caught.value)


IMPOSSIBLE = [
    ("--split.ratio", "1", "split.ratio is 1.0, expected a number between 0 and 1"),
    ("--data.size", "16", "data.size is 16, expected 32 or more"),
    ("--source.label_map", "{0: 7}", "source.label_map is {0: 7}, expected classes 0 (clear), 1 (cloud)"),
    ("--target.label_map", "{300: 1}", "target.label_map is {300: 1}, expected label values in 0..255"),
    ("--seed", "-1", "seed is -1, expected 0 or more"),
    ("--teacher.batch", "0", "teacher.batch is 0, expected 1 or more"),
    ("--intra.steps", "0", "intra.steps is 0, expected 1 or more"),
    ("--intra.epochs", "0", "intra.epochs is 0.0, expected a number above 0"),
    ("--log.pictures", "0", "log.pictures is 0, expected 1 or more"),
    ("--optim.lr", "0", "optim.lr is 0.0, expected a number above 0"),
    ("--teacher.augment.hflip", "1.5", "teacher.augment.hflip is 1.5, expected a number in [0, 1]"),
    ("--intra.ema_decay", "1", "intra.ema_decay is 1.0, expected a number in [0, 1)"),
    ("--net.mean", "[0, 0, 0]", "expected both net.mean and net.std"),
    ("--net.output_stride", "4", "net.output_stride is 4, expected 8, 16, 32 or null"),
    ("--data.workers", "-1", "data.workers is -1, expected 0 or more"),
    ("--source.root", "", "source.root is '', expected the folder of the labelled domain"),
]


def test_all_impossible_values_in_one_message() -> None:
    message = fault_of(*(f"{key}={value}" for key, value, _ in IMPOSSIBLE))
    assert message.startswith("configuration: ") and len(message.split("; ")) >= len(IMPOSSIBLE)
    assert [expected for _, _, expected in IMPOSSIBLE if expected not in message] == []


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--split.ratio=0", "split.ratio is 0.0, expected a number between 0 and 1"),
        ("--intra.self_training=[classmix]", "intra.step is 'asda', expected source_target, which has self_training"),
        ("--speed.pieces=0", "speed.pieces is 0, expected 1 or more"),
        ("--target.label_map={}", "target.label_map is {}, expected classes"),
        ("--target.label_map={-1: 1}", "target.label_map is {-1: 1}, expected label values in 0..255"),
    ],
)
def test_one_impossible_value_is_enough(argument: str, expected: str) -> None:
    message = fault_of(argument)
    assert message.startswith(f"configuration: {expected}") and len(message.split(" is ")) == 2


def test_both_domains_are_required() -> None:
    with pytest.raises(ConfigError, match=r"source\.root is ''.*target\.root is ''"):
        load_config([])


VALUES = ("label_map", "options")  # mappings that are values, not sections


def test_flatten_has_every_leaf_once() -> None:
    config = replace(Config(), generated=GeneratedConfig(seed=5), seed=4)
    leaves = flatten(config)
    assert leaves["seed"] == 4 and leaves["generated.seed"] == 5 and leaves["intra.augment.jitter"] == 0.5
    assert leaves["source.label_map"] is None and leaves["generated.root"] == "data/demo"
    assert not any(dataclasses.is_dataclass(value) for value in leaves.values())
    assert flatten(Config())["generated"] is None

    def count(values: dict[str, object]) -> int:
        return sum(count(v) if isinstance(v, dict) and k not in VALUES else 1 for k, v in values.items())

    assert len(leaves) == count(dataclasses.asdict(config))


@pytest.mark.parametrize("pair", PAIRS, ids=lambda path: path.stem)
def test_every_pair_loads_with_every_method(pair: Path) -> None:
    alone = load_config(["--config", str(pair)])
    assert alone.out == f"runs/{pair.stem}"
    for method in METHODS:
        config = load_config(["--config", str(pair), "--method", method.stem])
        asked = _leaves(yaml.safe_load(method.read_text()))
        assert {key: flatten(config)[key] for key in asked} == asked
        unasked = flatten(alone).keys() - asked.keys()
        assert {key: flatten(config)[key] for key in unasked} == {key: flatten(alone)[key] for key in unasked}


def _leaves(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in values.items():
        nested = isinstance(value, dict) and key not in VALUES
        found |= _leaves(value, f"{prefix}{key}.") if nested else {prefix + key: value}  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("pair", PAIRS, ids=lambda path: path.stem)
def test_released_preset_brings_its_own_network(pair: Path) -> None:
    net = load_config(["--config", str(pair), "--method", "asda_released"]).net
    assert (net.backbone, net.layout, net.output_stride, net.discriminator_width) == ("resnet50", "deeplab_v2", 8, 64)


def test_there_are_pairs_and_methods() -> None:
    assert {"demo", "whu_to_ms"} <= {path.stem for path in PAIRS}
    assert {"source_only", "advent", "intrada", "asda", "asda_released", "oracle"} <= {path.stem for path in METHODS}


def test_plain_asda_states_the_defaults() -> None:
    assert load_config([*DOMAINS, "--method", "asda_plain"]) == load_config(DOMAINS)


@pytest.mark.parametrize("name", ["asda", "asda_plain"])
def test_asda_has_the_ingredients_of_the_abstract(name: str) -> None:
    """In stage 1 the alignment of entropies; in stage 3 anchor and EMA, alignment, contrast and consistency."""
    config = load_config([*DOMAINS, "--method", name])
    teacher, intra = config.teacher, config.intra
    assert (teacher.alignment, intra.alignment, intra.step) == ("entropy", "entropy", "asda")
    assert intra.fuse not in ("anchor", "ema")
    assert (intra.contrast, intra.consistency, intra.export) == ("hec", "logits", "ema")
    assert min(teacher.adv_main, intra.adv_main, intra.contrast_weight, intra.consistency_weight) > 0


def _python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


SCRIPT = """
import runpy, sys
script = sys.argv[1]
sys.argv = sys.argv[1:]
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as end:
    heavy = sorted({"torch", "timm", "cv2"} & set(sys.modules))
    print(f"\\nSTATUS {end.code!r} HEAVY {heavy}")
"""


def test_help_lists_every_key_with_its_text_and_needs_no_torch() -> None:
    done = _python(SCRIPT, "train_teacher.py", "--help")
    assert done.stdout.endswith("STATUS 0 HEAVY []\n") or done.stdout.endswith("STATUS None HEAVY []\n")
    text = " ".join(done.stdout.split("options:")[1].split())
    assert "OUT/teacher/" in done.stdout
    keys = [key for key in flatten(Config()) if key != "generated"]
    assert len(keys) > 80
    for key in keys:
        place = text.index(f" --{key} ")
        entry = text[place : text.index("(type: ", place)]  # ends where the type stands
        words = entry.removeprefix(f" --{key} ").split()
        assert len([word for word in words if word.islower()]) >= 2, f"--{key} has no text"
    assert "seed of initial weights, sampling and augmentation (type: int, default: 0)" in text
    assert "share of the target images that becomes the easy split (type: float, default: 0.67)" in text


def test_a_fault_ends_a_script_with_one_sentence_before_torch() -> None:
    done = _python(SCRIPT, "train_intra.py", "--teacher.stepz", "3")
    assert "STATUS \"error: command line: unknown option '--teacher.stepz'; did you mean" in done.stdout
    assert done.stdout.endswith("HEAVY []\n") and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "option",
    [
        "--net.discriminator_width=0",
        "--intra.augment.hue=0.6",
        "--intra.augment.brightness=1.5",
        "--teacher.adv_main=-1",
        "--teacher.name=",
        "--teacher.name=a/b",
    ],
)
def test_values_that_only_fail_later_are_refused_at_once(option: str) -> None:
    key = option.split("=")[0].removeprefix("--")
    with pytest.raises(ConfigError, match=re.escape(key)):
        load_config(["--source.root", "a", "--target.root", "b", option])
