"""The keys of a comparison, and what cannot be among them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from config.fields import at_least, bounded, faults, nearest
from config.schema import KEYS
from utils.errors import CONTROL


@dataclass(frozen=True)
class CompareConfig:
    """A comparison: every method on every pair with every seed, under one protocol."""

    name: str = "table"
    """folder of the tables below out"""
    out: str = "runs/compare"
    """folder of the runs; several comparisons may share one, and then share what they have in common"""
    pairs: dict[str, str] = field(default_factory=dict)
    """name of a pair of domains -> its configuration file"""
    # No Any below: jsonargparse would import and call what a mapping with the key class_path names.
    methods: dict[str, dict | None] = field(default_factory=dict)
    """name of a row -> null for configs/methods/NAME.yaml, or what differs from the method given as `base`, such as
    {base: asda, intra: {contrast: none}}; `baseline` names the row over which it gains, if that is not source_only"""
    protocol: dict = field(default_factory=dict)
    """settings that are the same for all methods and win over their own, such as {net: {backbone: resnet50}}"""
    set: dict = field(default_factory=dict)
    """more of the protocol by full names, for the command line: '{net.weights: FILE, source.root: FOLDER}'"""
    seeds: list[int] = bounded([0, 1, 2], (lambda seeds: len({*seeds}) == len(seeds), "each seed once"))
    """training seeds"""
    only: str = ""
    """run these methods alone, comma-separated; the table shows every method that is finished; empty: all"""
    reference: str = "asda"
    """the method that the paired test compares the others with"""
    folds: int = at_least(4, 2)
    """an oracle on a target without held-back images is cross-validated with that many folds"""
    workers: int | None = at_least(None, 1)
    """jobs at the same time; null: one per GPU, or one"""
    threads: int | None = at_least(None, 1)
    """CPU threads of a job; null: the cores, divided by workers; another number changes the last digits"""
    selection: Literal["last", "entropy"] = "last"
    """which checkpoint is scored: the last, or that of the lowest mean entropy on the target's training images (needs
    protocol.log.snapshots); no label is involved"""
    best_on_labels: bool = False
    """add a column with the checkpoint that is best on the target's labels, which no user can choose"""
    groups: dict[str, list[str]] = field(default_factory=dict)
    """title -> pairs over which the gains are averaged, such as {real sensors: [a, b], generated: [c]}; empty: all"""
    published: str | None = None
    """YAML file of published scores to show beside ours"""

    @property
    def selected(self) -> list[str]:
        """The methods to run."""
        return self.only.split(",") if self.only else list(self.methods)


def comparison_faults(config: CompareConfig) -> Iterator[str]:
    """A sentence for everything that cannot be."""
    for key in ("pairs", "methods", "seeds"):
        if not getattr(config, key):
            yield f"{key} is empty, expected at least one; give --config FILE"
    for key in (config.name, *config.pairs, *config.methods):
        if key in ("", "..") or Path(key).name != key or CONTROL.search(key):
            yield f"{key!r} is to name a folder below out, expected a name without / or .."
    yield from faults(config)
    if config.name in config.pairs:
        yield f"name is {config.name!r}, which is also a pair; give the table another name"

    sections = {"protocol": config.protocol} | {f"methods.{key}": value or {} for key, value in config.methods.items()}
    for place, section in sections.items():
        for key, value in section.items():
            if value is None:
                yield f"{place}.{key} is empty, expected a value or a mapping of settings"
        if (baseline := section.get("baseline")) is not None and baseline not in config.methods:
            yield f"{place}.baseline is {baseline!r}, which is not one of the methods"
    for place, names, what in (
        ("reference is", {config.reference} - {"asda"}, "methods"),  # the default may be missing
        ("only names", config.selected, "methods"),
        *((f"groups.{title} names", pairs, "pairs") for title, pairs in config.groups.items()),
    ):
        known = getattr(config, what)
        for name in names:
            if name not in known:
                yield f"{place} {name!r}, which is not one of the {what}{nearest(name, known)}"
    for key in config.set:
        if key in ("seed", "out"):
            yield f"set names {key!r}, which compare.py sets itself; give seeds or out"
        elif key not in KEYS:
            yield f"set has the unknown key {key!r}{nearest(key, KEYS)}"
    log = config.protocol.get("log")
    snapshots = (isinstance(log, dict) and log.get("snapshots")) or config.set.get("log.snapshots")
    if (config.selection != "last" or config.best_on_labels) and not snapshots:
        yield "choosing among checkpoints needs copies of the network; give protocol.log.snapshots, steps between two"
