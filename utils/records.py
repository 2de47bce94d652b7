"""Records that one command leaves for a later one, read so that a damaged one is named."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from utils.errors import AsdaError, DataError
from utils.files import write_text


@contextmanager
def reading(path: Path, what: str, fix: str, kind: type[AsdaError] = DataError) -> Iterator[None]:
    """Within it, where `path` is read and taken apart, whatever a damaged file raises becomes an error of this kind,
    which names the file, what it has to be, and the fix."""
    damage = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
    try:
        yield
    except OSError as error:
        raise kind(f"{path}: cannot be read ({error.strerror or error}); {fix}") from error
    except damage as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise kind(f"{path}: is not {what} ({reason[:200]}); {fix}") from error


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def write_json(path: Path, record: Any) -> None:
    write_text(path, json.dumps(record, indent=2) + "\n")


@lru_cache(maxsize=1)
def commit() -> str:
    """That of the checkout which this file is of, or "unknown"."""
    ask = ["git", "-C", str(Path(__file__).resolve().parents[1]), "rev-parse", "HEAD"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def changes(before: Any, now: Any, key: str = "") -> list[str]:
    """What differs between two nested mappings, a sentence for each full name."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = {name: f"{key}.{name}" if key else str(name) for name in {**now, **before}}
        return [one for name, full in names.items() for one in changes(before.get(name), now.get(name), full)]
    return [] if before == now else [f"{key} was {before!r}, is {now!r}"]
