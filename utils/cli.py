"""What the scripts have in common: read the configuration early, and end with a sentence instead of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from utils.config import load_config
from utils.errors import AsdaError

T = TypeVar("T")


def configure(description: str | None, load: Callable[..., Any] = load_config) -> Any:
    """Read the command line; scripts do so before they import torch, so `--help` and typing errors answer at once."""
    try:
        return load(description=description)
    except AsdaError as error:
        sys.exit(f"error: {error}")


def run(main: Callable[[T], None], config: T) -> None:
    """Run a script's main function; an error of the project's own ends it with status 1, Ctrl-C with 130."""
    try:
        main(config)
    except AsdaError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)
