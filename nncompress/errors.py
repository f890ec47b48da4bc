"""What a user is told, and the exit code it ends with. Imports nothing."""


class NNCompressError(Exception):
    """An error whose message is one sentence for the user: what is required, what was found, what to do."""

    exit_code = 1


class ConfigError(NNCompressError):
    """A key, a type or a value of the configuration is wrong."""

    exit_code = 2


class DataError(NNCompressError):
    """A data file is missing, truncated or not what it claims to be."""


class Unsupported(NNCompressError):
    """The solver or compression cannot treat this network."""


class CheckpointError(NNCompressError):
    """A checkpoint or artefact is missing, damaged or of another kind."""


class Diverged(NNCompressError):
    """An iterate is no longer finite, or the objective has left every bound."""


class Pruned(NNCompressError):
    """A trial of a search that others have shown to be hopeless."""
