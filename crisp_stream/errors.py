"""Expected errors. The CLI prints these as one line and exits 2; anything else is a bug and keeps its traceback.

Every message names the subject, the rule, what it got instead, and the remedy.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


class CrispError(Exception):
    """Base of every error a user can cause or mend."""


class InputError(CrispError, ValueError):
    """An argument or an input file breaks a rule."""


class CorruptInputError(InputError):
    """An input file is damaged: cut off, unreadable, or with a line that no parser takes. No setting mends it."""


class FormatError(CrispError, ValueError):
    """A dataset, tree or histogram on disk is not what FORMAT.md says."""


class CorruptDataError(FormatError):
    """Bytes were read whose checksum does not match, and reading them again did not help."""


class RecipeError(CrispError, ValueError):
    """A recipe has an unknown key, a value of the wrong type, or values that contradict each other."""


class ResumeError(CrispError, ValueError):
    """A saved state belongs to another dataset, mixture, seed or order version."""


class StorageError(CrispError, OSError):
    """The storage refused or failed: missing object, missing container, credentials, network."""


class DivergedError(CrispError, ArithmeticError):
    """The loss or the weights of a model in training are not finite."""


class RunInterruptedError(CrispError):
    """A signal ended a run in order, with a checkpoint; its name is `signal_name`."""

    def __init__(self, message: str, *, signal_name: str) -> None:
        super().__init__(message)
        self.signal_name = signal_name


class MissingExtraError(CrispError, ImportError):
    """An optional dependency of the activity is not installed."""


_PACKAGES = {
    "composer": "mosaicml",
    "faiss": "faiss-cpu",
    "sklearn": "scikit-learn",
    "streaming": "mosaicml-streaming",
}
"""Packages whose name is not that of their module."""


def import_extra(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency, or a module of this package that needs one, where it is used.

    Raises:
        MissingExtraError: a package is not installed; the message holds its name and the pip command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "crisp_stream") or (top != "crisp_stream" and missing != top):
            raise
        raise _missing(missing, extra, purpose) from error


def require_extra(module: str, *, extra: str, purpose: str) -> None:
    """Look whether an optional dependency is installed, without the time and memory of importing it.

    Raises:
        MissingExtraError: as `import_extra`.
    """
    if importlib.util.find_spec(module) is None:
        raise _missing(module, extra, purpose)


def _missing(module: str, extra: str, purpose: str) -> MissingExtraError:
    top = module.partition(".")[0]
    package = _PACKAGES.get(top, top.replace("_", "-"))
    return MissingExtraError(
        f"{purpose} needs {package}, which is not installed. Run: pip install 'crisp-stream[{extra}]'"
    )


class MissingObjectError(StorageError):
    """The object is not there, though the storage answered."""


class ConflictError(StorageError):
    """The object is there already, or is not the one any more that was to be replaced; nothing was written."""
