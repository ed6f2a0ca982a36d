"""Errors that help: each message names the thing, what was expected, what was found and what to do.

All of them are ``ValueError`` subclasses, so a caller who only wants "bad input" catches one built-in type, while
a batch run can tell an unreadable scan from a bad question.
"""


class UniReasonError(ValueError):
    """Base of every error that this package raises on purpose."""


class ScanError(UniReasonError):
    """A volume or picture is missing, unreadable or ill-formed."""


class LabelError(UniReasonError):
    """A label map is ill-formed or does not belong to its scan."""


class ModelError(UniReasonError):
    """A checkpoint, processor or adapter cannot be used."""


class RequestError(UniReasonError):
    """A question put to the model, or one row of a batch of questions, is incomplete or contradictory."""


class DatasetError(UniReasonError):
    """A data set folder, record or manifest is not in the expected form."""


class TrainingError(UniReasonError):
    """A training run cannot begin, or cannot sensibly go on."""


class GridError(UniReasonError):
    """A grid of an ablation that cannot be run."""


class PlanError(UniReasonError):
    """Nothing can be planned from this, or what is planned cannot fit."""


class ProfileError(UniReasonError):
    """A profile or one of its overrides is unknown or out of range."""


def explain(subject: object, *, expected: str, found: str, do: str) -> str:
    """The house form of an error message.

    Args:
        subject: What the message is about, usually a file path.
        expected: What would have been right.
        found: What was there instead.
        do: What the reader can do now.

    Returns:
        ``"subject: expected ..., found .... Do: ..."`` on one line.
    """
    return f"{subject}: expected {expected}, found {found}. What to do: {do}."
