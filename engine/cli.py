"""What the scripts have in common: read the configuration early, and end with a sentence instead of a traceback."""

import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

from config.load import load_config
from engine.lock import one_writer
from engine.processes import is_first, joined, started_together
from engine.signals import CONTINUES, terminable
from utils.errors import AsdaError, ConfigError, Interrupted, printable, unwritable
from utils.output import guard_streams

T = TypeVar("T")


def configure(description: str | None, load: Callable[..., Any] = load_config) -> Any:
    """Read the command line; scripts do so before they import torch, so `--help` and typing errors answer at once.
    From then on a stream that is closed ends the script as SIGTERM does."""
    guard_streams()
    try:
        return load(description=description)
    except AsdaError as error:
        sys.exit(printable(f"error: {error}"))


def run(main: Callable[[T], None], config: T, folder: str | Path | None = None, *, together: bool = True) -> None:
    """Run a script's main function as the only writer of `folder`, or, if `together`, as one of several processes.

    An error of the project's own, or of a file that cannot be read or written, ends it with status 1, Ctrl-C with 130,
    SIGTERM with 143.
    """
    try:
        if not together and started_together():
            raise ConfigError(f"{Path(sys.argv[0]).name}: is for one process alone; start it without torchrun")
        with joined(), terminable(), one_writer(folder) if folder is not None and is_first() else nullcontext():
            main(config)
    except KeyboardInterrupt as error:
        print(str(error) or f"interrupted; {CONTINUES}", file=sys.stderr)
        sys.exit(128 + (error.signal if isinstance(error, Interrupted) else signal.SIGINT))
    except AsdaError as error:
        sys.exit(printable(f"error: {error}"))
    except OSError as error:
        if error.filename is None:
            raise
        sys.exit(printable(f"error: {unwritable(error.filename, error)}"))
