"""What the scripts have in common: read the configuration early, and end with a sentence instead of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

from utils.config import Config, load_config
from utils.errors import AsdaError


def configure(description: str | None) -> Config:
    """Read the command line; scripts do so before they import torch, so `--help` and typing errors answer at once."""
    try:
        return load_config(description=description)
    except AsdaError as error:
        sys.exit(f"error: {error}")


def run(main: Callable[[Config], None], config: Config) -> None:
    """Run a script's main function; an error of the project's own ends it with status 1, Ctrl-C with 130."""
    try:
        main(config)
    except AsdaError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)
