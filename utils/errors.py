"""The errors a user can meet; every message names the place, what was found, what was expected and the fix."""

import re

# Characters that would act on a terminal, turn the order of a line, or break a list of one name a line.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class AsdaError(Exception):
    """Base of all errors that this project raises on purpose; the scripts print them without a traceback."""


class ConfigError(AsdaError):
    """A configuration file or command line that cannot be used."""


class DataError(AsdaError):
    """An image, label, list or folder that cannot be used."""


class WeightsError(AsdaError):
    """A weights file or checkpoint that cannot be used."""


class TrainingError(AsdaError):
    """A training run that must not go on, such as a loss that is not finite."""


class EvaluationError(AsdaError):
    """A part of an evaluation that failed."""


class MissingError(AsdaError):
    """A part of an evaluation that cannot be made of what was given, such as a picture of two domains of one."""


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop by `signal`, a number; nothing that goes on after errors goes on after this."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def printable(text: str) -> str:
    """A text that may hold foreign names, for a terminal: control characters but line feeds as their escapes."""
    return CONTROL.sub(lambda found: found[0] if found[0] == "\n" else repr(found[0])[1:-1], text)


def unwritable(path: object, error: Exception, needed: int | None = None) -> DataError:
    """What to raise when `path` cannot be written; `needed` is its size in bytes where that is known."""
    reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
    size = "" if needed is None else f"; {needed:,} bytes are needed"
    return DataError(
        f"{path}: cannot be written ({reason}){size}. See that the folder is there and may be written to and the disk "
        "has room; the same command then goes on from what is finished"
    )
