"""Errors that help: each message names the thing, what was expected, what was found and what to do.

All are ``ValueError`` subclasses, for a caller who only wants "bad input", and survive a process
pool: pickling keeps the four parts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class UniReasonError(ValueError):
    """Base of every error that this package raises on purpose: what it is about (alone, the whole
    message), what would have been right, what was there instead, and what the reader can do."""

    def __init__(
        self, subject: object, expected: str | None = None, found: Any = None, do: str | None = None
    ) -> None:
        self.subject, self.expected, self.do = str(subject), expected, do
        self.found = None if found is None else str(found)
        message = self.subject
        if expected is not None:
            message = f"{subject}: expected {expected}, found {found}. What to do: {do}."
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.subject, self.expected, self.found, self.do)


def why(error: Exception) -> str:
    """An error of another library in one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


@contextmanager
def raising(kind: type[UniReasonError], subject: object, expected: str, do: str) -> Iterator[None]:
    """What other libraries raise on damaged files, of many types, becomes one of our errors."""
    try:
        yield
    except UniReasonError:
        raise
    except Exception as error:
        raise kind(subject, expected, why(error), do) from error


class BoxError(UniReasonError):
    """A box was built from, or used with, something that is not a box."""


class ScanError(UniReasonError):
    """A volume or image is missing, unreadable or ill-formed."""


class LabelError(UniReasonError):
    """A label map is ill-formed or does not belong to its scan."""


class ModelError(UniReasonError):
    """A checkpoint, processor or adapter cannot be used."""


class RequestError(UniReasonError):
    """A question to the model, or one row of a batch, is incomplete or contradictory."""


class DatasetError(UniReasonError):
    """A data set folder, record or manifest is not in the expected form."""


class TrainingError(UniReasonError):
    """A training run cannot begin, or cannot sensibly continue."""


class GridError(UniReasonError):
    """A grid of an ablation that cannot be run."""


class PlanError(UniReasonError):
    """Nothing can be planned from this, or what is planned cannot fit."""


class ProfileError(UniReasonError):
    """A profile or one of its overrides is unknown or out of range."""


class ScanWarning(UserWarning):
    """Something that the user of a scan or label map should know, which was read all the same."""
