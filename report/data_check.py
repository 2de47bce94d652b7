"""A report on the data of a configuration: what both domains hold, and what is wrong with it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from config.schema import Config
from datasets.check import PartSummary, against_published, between_domains, inspect_part, warnings_of
from datasets.images import ImageSet
from datasets.measured_scaling import has_8_bits, measured_stretch
from datasets.readers import READERS
from engine.domains import Role, SetName, domain_of, rules_of, search
from engine.pictures import as_rgb, colour_mask
from engine.run import make_generated
from report.plots import evenly_spaced, picture_grid, whole_label
from utils.errors import DataError, printable
from utils.files import write_text
from utils.records import write_json

SAMPLES = 8  # in the sheet of a domain


def check(config: Config) -> None:
    """Report on both domains, in OUT/check/; raises DataError, with the report written, if a file cannot be used."""
    make_generated(config)
    folder = Path(config.out) / "check"
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, dict[str, Any]] = {}
    training: dict[str, PartSummary] = {}
    for role in get_args(Role):
        domain = domain_of(config, role)
        if not domain.root:
            continue
        parts, images = check_domain(config, role)
        training[role] = parts["train"]
        try:
            draw_samples(images, folder / f"{role}.png")
        except DataError as error:
            parts["train"].problems.append(str(error))
        reader, lists = READERS[domain.reader], {"train": domain.train, "eval": domain.eval}
        if domain.eval is None:  # a published count is of all that is shared out
            lists = {"both" if domain.eval_share else "train": domain.train}
        keys = {name: reader.published_key(Path(domain.root), rows) for name, rows in lists.items()}
        record[role] = {
            "root": domain.root,
            "reader": domain.reader,
            "parts": {name: part.facts(images.decoder.bands) for name, part in parts.items()},
            "notes": warnings_of(parts) + against_published(parts, keys, reader.published),
            "problems": sorted({problem for part in parts.values() for problem in part.problems}),
        }
    if {*training} == {"source", "target"}:
        record["target"]["notes"] += between_domains(training["source"], training["target"])
    write_json(folder / "report.json", record)
    text = printable("\n".join(section(role, found) for role, found in record.items()))
    write_text(folder / "report.md", text)
    print(f"{text}\n{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    if problems := sum(len(found["problems"]) for found in record.values()):
        raise DataError(f"{problems} problem(s) in the data, listed above and in {folder / 'report.md'}")


def check_domain(config: Config, role: Role) -> tuple[dict[str, PartSummary], ImageSet]:
    """The parts of a domain, and its usable training images with a scaling for the eye."""
    domain = domain_of(config, role)
    decoder = rules_of(config, role)
    parts: dict[str, PartSummary] = {}
    usable = ImageSet((), decoder)
    names: tuple[SetName, ...] = ("train", "eval") if domain.eval is not None or domain.eval_share else ("train",)
    for name in names:
        try:
            found = search(domain, name, labels=True, partial=True)
        except DataError as error:
            parts[name] = PartSummary(problems=[str(error)])
            continue
        lacking = [item for item in found.items if item.label is None] if role == "source" else []
        faults = [*found.faults, *(f"{item.image}: has no label" for item in lacking)]
        parts[name] = part = inspect_part(found.items, decoder, f"{role} {name}", faults)
        if not found.items:
            part.problems.append(f"{domain.root}: lists no image as {domain.reader}, for {name}")
        if name == "train":
            usable = ImageSet(tuple(part.dtypes.get(part.usual_dtype, ())), decoder)
            if domain.gamma != 1 and decoder.scaling is None and domain.scaling is None and "uint8" in part.dtypes:
                part.problems.append(f"{role}.gamma is {domain.gamma}, but the files have 8 bits; give scaling: train")
    return parts, usable


def section(role: str, found: Mapping[str, Any]) -> str:
    """A domain's record, in Markdown."""
    facts = found["parts"]
    rows = [f"## {role}: {found['root']} ({found['reader']})", ""]
    rows += [f"| | {' | '.join(facts)} |", f"| --- |{' ---: |' * len(facts)}"]
    for key in next(iter(facts.values())):
        rows.append(f"| {key.replace('_', ' ')} | {' | '.join(shown(key, fact[key]) for fact in facts.values())} |")
    for title, lines in (("Notes", found["notes"]), ("Problems", found["problems"])):
        if lines:
            rows += ["", f"{title} ({len(lines)}):", "", *(f"* {line}" for line in lines)]
    return "\n".join([*rows, ""])


def shown(key: str, value: object) -> str:
    if value is None or value == "" or value == {}:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{band} {low:g} to {high:g}" for band, (low, high) in value.items())
    return f"{100 * value:.2f} %" if key.endswith("share") and isinstance(value, float) else str(value)


def draw_samples(images: ImageSet, path: Path) -> None:
    """A sheet of evenly spaced training images, scaled as in training, with their labels."""
    if not len(images):
        return
    chosen = evenly_spaced(images, SAMPLES)
    decoder = images.decoder
    if decoder.scaling is None and not has_8_bits(chosen, decoder):
        decoder = replace(decoder, scaling=measured_stretch(images.items, decoder))
    decoded = [decoder.read(item) for item in chosen]
    columns = {
        "image": [one.placed(as_rgb(one.image), 0) for one in decoded],
        "label": [colour_mask(whole_label(one)) for one in decoded],
    }
    picture_grid(path, [item.name for item in chosen], columns)
