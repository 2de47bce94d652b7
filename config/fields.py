"""What a key of the configuration states beside its type: bounds and choices, checked by one loop."""

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import field, fields, is_dataclass
from typing import Any

Rule = tuple[Callable[[Any], object], str]  # whether a value holds, and what is expected


def bounded(default: Any, *rules: Rule) -> Any:
    """A field with rules for its values; they are not asked about null."""
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata={"rules": rules})
    return field(default=default, metadata={"rules": rules})


def at_least(default: float | None, least: int, why: str = "") -> Any:
    """A number that is `least` or more."""
    return bounded(default, (lambda value: value >= least, f"{least} or more{why}"))


def positive(default: float | None) -> Any:
    """A number above 0."""
    return bounded(default, (lambda value: value > 0, "a number above 0"))


def within(default: float, low: float, high: float, what: str = "a number") -> Any:
    """A number from `low` to `high`, both included."""
    return bounded(default, (lambda value: low <= value <= high, f"{what} in [{low}, {high}]"))


def share(default: float) -> Any:
    """A number from 0 to 1, such as a probability."""
    return within(default, 0, 1)


def choice(default: str, names: Collection[str], *others: str) -> Any:
    """One of these names, or of the others."""
    *most, last = (*names, *others)
    return bounded(default, (lambda value: value in (*names, *others), f"one of {', '.join(most)} or {last}"))


def fault(key: str, value: object, expected: str) -> str:
    """The sentence about a value that cannot be."""
    return f"{key} is {value!r}, expected {expected}"


def faults(config: Any, prefix: str = "") -> Iterator[str]:
    """A sentence for every value that its own field does not allow."""
    for one in fields(config):
        key, value = prefix + one.name, getattr(config, one.name)
        if is_dataclass(value):
            yield from faults(value, f"{key}.")
        elif isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
            yield fault(key, value, "text without zero bytes and in UTF-8")
        elif isinstance(value, float) and not math.isfinite(value):
            yield fault(key, value, "a finite number")
        elif value is not None:
            for holds, expected in one.metadata.get("rules", ()):
                try:
                    if not holds(value):
                        yield fault(key, value, expected)
                except re.error as error:
                    yield fault(key, value, f"{expected} ({error})")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """All leaves of a configuration as `{"net.backbone": ...}`."""
    leaves: dict[str, Any] = {}
    for one in fields(config):
        value = getattr(config, one.name)
        leaves |= flatten(value, f"{prefix}{one.name}.") if is_dataclass(value) else {prefix + one.name: value}
    return leaves


def nearest(key: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, or all of them."""
    known = list(known)
    matches = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    return f"; did you mean {matches[0]!r}?" if matches else f"; known here: {', '.join(known)}"
