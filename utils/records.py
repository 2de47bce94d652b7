"""Records that an earlier command left, read so that a damaged one is named and none can do more than hold values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from utils.errors import AsdaError, DataError

MOST = 10_000  # parts of a YAML file, each counted as often as aliases repeat it


@contextmanager
def reading(path: Path, what: str, fix: str, kind: type[AsdaError] = DataError) -> Iterator[None]:
    """Within it, where `path` is read and taken apart, whatever a damaged file raises becomes an error that names it.

    Args:
        what: what the file has to be.
        fix: what to do where it is not.
        kind: of the error.
    """
    damage = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, yaml.YAMLError)
    try:
        yield
    except OSError as error:
        raise kind(f"{path}: cannot be read ({error.strerror or error}); {fix}") from error
    except damage as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise kind(f"{path}: is not {what} ({reason[:200]}); {fix}") from error


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def read_yaml(path: Path) -> Any:
    """What a YAML file holds: plain values alone, of at most `MOST` parts when every alias is written out.

    Raises:
        OSError, ValueError, RecursionError, yaml.YAMLError: it cannot be read, or holds something else.
    """
    loader = _Bounded(path.read_text("utf-8"))
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _Bounded(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.sizes: dict[int, float] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        repeated = self.check_event(yaml.AliasEvent)
        node: Any = super().compose_node(parent, index)
        if not repeated:
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            if isinstance(node, yaml.MappingNode):
                parts = [part for pair in parts for part in pair]
            self.sizes[id(node)] = 1 + sum(self.sizes[id(part)] for part in parts)
        if max(self.sizes.get(id(node), math.inf), len(self.sizes)) > MOST:  # one not known yet holds itself
            problem = f"found more than {MOST} parts, or aliases that make more of them"
            raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
        return node
