"""Look at the data of a configuration before anything is trained.

    python -m datasets check --config configs/demo.yaml

Reads every file of both domains once and says what is there: counts, sizes, types, ranges of values, shares of cloud
and of pixels without data, what differs from the published facts, images that are in train and in eval, and every file
that cannot be used. Writes OUT/check/: report.json, report.md and a sheet of samples with their labels for each domain.
Ends with status 1 if a file cannot be used.
"""

from __future__ import annotations

if __name__ == "__main__":
    import sys

    from engine.cli import configure

    if sys.argv[1:2] != ["check"]:
        wanted = " ".join(sys.argv[1:2]) or "nothing"
        if wanted not in ("-h", "--help"):
            sys.exit(f"error: found {wanted!r}, expected: python -m datasets check --config CONFIG [--key value ...]")
    else:
        del sys.argv[1]
    CONFIG = configure(__doc__)

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from config.schema import Config, DomainConfig
from datasets.check import Part, against_published, survey_part, warnings_of
from datasets.images import Decoded, ImageSet, has_8_bits, measured_stretch
from datasets.readers import READERS
from engine.cli import run
from engine.domains import Role, SetName, domain_of, rules_of, search
from engine.pictures import as_rgb, colour_mask
from report.plots import picture_grid
from utils.errors import DataError, printable
from utils.files import write_text

SAMPLES = 8  # in the sheet of a domain


def check(config: Config) -> None:
    """Report on both domains.

    Raises:
        DataError: a file cannot be used; the report has been written.
    """
    from engine.run import make_generated

    make_generated(config)
    folder = Path(config.out) / "check"
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, object] = {}
    sections, problems = [], 0
    roles: tuple[Role, ...] = ("source", "target")
    for role in roles:
        domain = domain_of(config, role)
        if not domain.root:
            continue
        parts, images = check_domain(config, role)
        bands = images.decoder.bands
        facts = {name: part.facts(bands) for name, part in parts.items()}
        reader = READERS[domain.reader]
        notes = warnings_of(parts) + against_published(parts, published_keys(domain), reader.published)
        try:
            draw_samples(images, folder / f"{role}.png")
        except DataError as error:
            parts["train"].problems.append(str(error))
        faults = sorted({problem for part in parts.values() for problem in part.problems})
        problems += len(faults)
        record[role] = {
            "root": domain.root,
            "reader": domain.reader,
            "parts": facts,
            "notes": notes,
            "problems": faults,
        }
        sections.append(section(role, domain, facts, notes, faults))
    write_text(folder / "report.json", json.dumps(record, indent=2) + "\n")
    text = printable("\n".join(sections))
    write_text(folder / "report.md", text)
    print(text)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    if problems:
        raise DataError(f"{problems} problem(s) in the data, listed above and in {folder / 'report.md'}")


def check_domain(config: Config, role: Role) -> tuple[dict[str, Part], ImageSet]:
    """The parts of a domain, and its usable training images with a scaling for the eye."""
    domain = domain_of(config, role)
    decoder = rules_of(config, role)
    parts: dict[str, Part] = {}
    usable = ImageSet((), decoder)
    names: tuple[SetName, ...] = ("train", "eval") if domain.eval is not None or domain.eval_share else ("train",)
    for name in names:
        try:
            found = search(domain, name, labels=True, partial=True)
        except DataError as error:
            parts[name] = Part(problems=[str(error)])
            continue
        lacking = [item for item in found.items if item.label is None] if role == "source" else []
        faults = [*found.faults, *(f"{item.image}: has no label" for item in lacking)]
        parts[name] = part = survey_part(found.items, decoder, f"{role} {name}", faults)
        if not found.items:
            part.problems.append(f"{domain.root}: lists no image as {domain.reader}, for {name}")
        if name == "train":
            names_of_use = set(part.usual)
            usable = ImageSet(tuple(item for item in found.items if item.name in names_of_use), decoder)
            if domain.gamma != 1 and decoder.scaling is None and domain.scaling is None and "uint8" in part.dtypes:
                part.problems.append(f"{role}.gamma is {domain.gamma}, but the files have 8 bits; give scaling: train")
    return parts, usable


def published_keys(domain: DomainConfig) -> dict[str, str]:
    """Which of the published counts each part, or both together, should have."""
    root, key = Path(domain.root), READERS[domain.reader].published_key
    if domain.eval is None:
        return {"both" if domain.eval_share else "train": key(root, domain.train)}
    return {"train": key(root, domain.train), "eval": key(root, domain.eval)}


def section(
    role: str, domain: DomainConfig, facts: Mapping[str, Mapping[str, object]], notes: list[str], faults: list[str]
) -> str:
    """A domain's part of the report, in Markdown."""
    rows = [
        f"## {role}: {domain.root} ({domain.reader})",
        "",
        f"| | {' | '.join(facts)} |",
        f"| --- |{' ---: |' * len(facts)}",
    ]
    for key in next(iter(facts.values())):
        rows.append(f"| {key.replace('_', ' ')} | {' | '.join(shown(key, fact[key]) for fact in facts.values())} |")
    for title, lines in (("Notes", notes), ("Problems", faults)):
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
    chosen = [images[i] for i in np.linspace(0, len(images) - 1, min(SAMPLES, len(images))).round().astype(int)]
    decoder = images.decoder
    if decoder.scaling is None and not has_8_bits(chosen, decoder):
        from dataclasses import replace

        decoder = replace(decoder, scaling=measured_stretch(images.items, decoder))
    seen = [decoder.read(item) for item in chosen]
    columns = {"image": [d.placed(as_rgb(d.image), 0) for d in seen], "label": [label_of(d) for d in seen]}
    picture_grid(path, [item.name for item in chosen], columns)


def label_of(decoded: Decoded) -> np.ndarray:
    unknown = np.full(decoded.valid.shape, 255, np.uint8)
    return colour_mask(decoded.placed(unknown if decoded.label is None else decoded.label, 255))


if __name__ == "__main__":
    run(check, CONFIG)
