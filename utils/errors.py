"""The errors a user can meet; every message names the place, what was found, what was expected and the fix."""


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


def unwritable(path: object, error: Exception, needed: int | None = None) -> DataError:
    """What to raise when `path` cannot be written; `needed` is its size in bytes where that is known."""
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    size = "" if needed is None else f"; {needed:,} bytes are needed"
    return DataError(
        f"{path}: cannot be written ({reason}){size}. See that the folder is there and may be written to and the disk "
        "has room; the same command then goes on from what is finished"
    )
