"""Every error that Tandem raises on purpose.

The text of each says what was found, where, and what to do, in one line. The entry points print that
line and exit with `exit_code`; anything that is not a `TandemError` is a bug and keeps its traceback.
"""

from pathlib import Path


class TandemError(Exception):
    """Base of the errors that a user can mend. `on_all_ranks` says that all processes of a group raise it."""

    exit_code = 1
    on_all_ranks = False


class ConfigError(TandemError):
    """A setting, a recipe or a command line is wrong."""

    exit_code = 2


class DataError(TandemError):
    """An image, a table or a folder of the data set cannot be used as it is."""


class WeightsError(TandemError):
    """A weights file does not fit the model, is damaged, or cannot be had."""


class CheckpointError(TandemError):
    """A checkpoint or a run folder is damaged, incomplete or in use."""


class BackendUnavailable(TandemError):
    """A framework or runtime is not installed, or not on this platform."""


class OutOfMemory(TandemError):
    """What the device has to hold at once does not fit into its memory."""


class Diverged(TandemError):
    """A network gives numbers that are not finite: more training updates than the settings allow, all of its epochs'
    validation scores, or a prediction."""


class GroupLost(TandemError):
    """A process that trains together with this one has ended, or does not answer."""


class ConvertError(TandemError):
    """A model could not be converted, or the converted one does not answer as the original."""


class UnsupportedOperation(TandemError):
    """The reference evaluator met an operation or an argument that it does not know."""


class TandemWarning(UserWarning):
    """What a user should know although the command goes on; warnings of other categories are a library's."""


class Interrupted(Exception):
    """The user asked to stop; what was trained is saved in `folder`."""

    def __init__(self, folder: Path):
        super().__init__(str(folder))
        self.folder = folder


def reason(error: BaseException) -> str:
    """An error as a line; one that is a fault in Tandem with its kind."""
    return str(error) if isinstance(error, TandemError) else f"{type(error).__name__}: {error}"
