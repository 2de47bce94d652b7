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
