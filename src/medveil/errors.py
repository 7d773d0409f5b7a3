"""One tree of errors; every message says what, got, expected and remedy.

The tree, with the exit code of the command line in brackets::

    MedveilError [1]
    ├── ConfigError [2]            a plan, a data file or an option is wrong
    ├── DataError [3]
    │   ├── MissingDataError       a data set or file is not where it should be
    │   ├── ChecksumError          bytes differ from what was published
    │   ├── ImageError             one image cannot be used; ``reason`` is a short stable word
    │   ├── ArchiveError           a zip is truncated, hostile or too large
    │   ├── LabelError             a label or mask is missing or out of range
    │   ├── SplitError             a patient in two splits, or a split that is empty
    │   └── PartitionError         a site would be empty, or a column is missing
    ├── ModelError [4]
    │   ├── UnsupportedModelError  a network that a later stage cannot handle
    │   │   └── UnsupportedLayer   one layer that encrypted inference cannot evaluate
    │   └── WeightsError           a weights file does not fit or is damaged
    ├── FederationError [5]
    │   ├── MessageError           bytes that are not a valid message
    │   ├── ProtocolError          a valid message at the wrong moment
    │   │   └── AuthenticityError  a forged message, a swapped key, or a list that contradicts an earlier one
    │   ├── PipelineError          stages missing, unknown or out of order
    │   ├── TooFewSitesError       fewer sites left than the plan allows
    │   └── EngineError            the engine that carries messages cannot be set up, reached or used
    ├── RunError [6]
    │   ├── InterruptedRunError    ended from outside before it was finished; it can go on
    │   ├── ResumeError            a run folder belongs to another plan or is damaged
    │   ├── DivergedError          the loss is no longer finite
    │   ├── ManifestError          a run's files differ from its signed manifest
    │   └── AttackError            an attack or audit that cannot be tried on this run
    └── PrivacyError [7]
        ├── GuaranteeError         a privacy claim that would be hollow
        ├── BudgetError            a release would spend more than the site allows
        ├── LedgerError            a privacy ledger is damaged, was changed, or cannot be used
        ├── PolicyError            a plan that the site's policy refuses
        ├── ApprovalError          a plan that the site has not approved
        └── AuditLogError          an audit log is damaged, was changed, or cannot be used

Messages never hold patient data: no names, ids, dates, or file names that may carry them.
"""

from typing import ClassVar


class MedveilError(Exception):
    """Base of every error that medveil raises on purpose.

    Args:
        what: one sentence that says what is wrong.
        got: the value found (never patient data).
        expected: what would have been right.
        remedy: what the reader can do next.

    >>> print(MedveilError("The split fractions do not fit", got=1.2, expected="at most 1", remedy="lower test"))
    The split fractions do not fit. Got: 1.2. Expected: at most 1. Remedy: lower test.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        what: str,
        *,
        got: object | None = None,
        expected: object | None = None,
        remedy: str | None = None,
    ) -> None:
        self.what = what.rstrip(".")
        self.got = got
        self.expected = expected
        self.remedy = remedy
        super().__init__(what)

    def __str__(self) -> str:
        parts = [self.what]
        parts += [
            f"{name}: {str(value).rstrip('.')}"
            for name, value in (("Got", self.got), ("Expected", self.expected), ("Remedy", self.remedy))
            if value is not None
        ]
        return ". ".join(parts) + "."


class ConfigError(MedveilError):
    """A plan, a data file or an option is wrong."""

    exit_code = 2


class DataError(MedveilError):
    """Data cannot be used as asked."""

    exit_code = 3


class MissingDataError(DataError):
    """A data set or file is not where it should be."""


class ChecksumError(DataError):
    """Bytes differ from what was published."""


class ImageError(DataError):
    """One image cannot be used.

    Args:
        what: one sentence.
        reason: a short stable word for counting, for example ``"truncated"``.
        got: as in :class:`MedveilError`.
        expected: as in :class:`MedveilError`.
        remedy: as in :class:`MedveilError`.
    """

    def __init__(
        self,
        what: str,
        *,
        reason: str,
        got: object | None = None,
        expected: object | None = None,
        remedy: str | None = None,
    ) -> None:
        self.reason = reason
        super().__init__(what, got=got, expected=expected, remedy=remedy)


class ArchiveError(DataError):
    """A zip is truncated, hostile or too large."""


class LabelError(DataError):
    """A label or mask is missing or out of range."""


class SplitError(DataError):
    """A patient stands in two splits, or a split is empty."""


class PartitionError(DataError):
    """A site would be empty, or the column that names sites is missing."""


class ModelError(MedveilError):
    """A model cannot be built or used."""

    exit_code = 4


class UnsupportedModelError(ModelError):
    """A network that a later stage cannot handle."""


class UnsupportedLayer(UnsupportedModelError):  # noqa: N818 - the name that callers of compile() know
    """One layer of a network that encrypted inference cannot evaluate.

    Args:
        what: one sentence.
        layer: the layer's dotted path in the network, and its type.
        got: as in :class:`MedveilError`.
        expected: as in :class:`MedveilError`.
        remedy: as in :class:`MedveilError`; always given.
    """

    def __init__(
        self,
        what: str,
        *,
        layer: str,
        remedy: str,
        got: object | None = None,
        expected: object | None = None,
    ) -> None:
        self.layer = layer
        super().__init__(f"{what.rstrip('.')}: layer {layer}", got=got, expected=expected, remedy=remedy)


class WeightsError(ModelError):
    """A weights file does not fit the model or is damaged."""


class FederationError(MedveilError):
    """Sites and coordinator could not work together."""

    exit_code = 5


class MessageError(FederationError):
    """Bytes that are not a valid message."""


class ProtocolError(FederationError):
    """A valid message at the wrong moment."""


class AuthenticityError(ProtocolError):
    """A message that its named sender did not make, or that contradicts an earlier one."""


class PipelineError(FederationError):
    """Stages are missing, unknown or out of order."""


class TooFewSitesError(FederationError):
    """Fewer sites are left than the plan allows."""


class EngineError(FederationError):
    """The engine that carries messages between hospitals cannot be set up, reached or used."""


class RunError(MedveilError):
    """A run cannot be started, resumed or read."""

    exit_code = 6


class InterruptedRunError(RunError):
    """A run was ended from outside before it was finished; it can go on."""


class ResumeError(RunError):
    """A run folder belongs to another plan or is damaged."""


class DivergedError(RunError):
    """The loss is no longer finite."""


class ManifestError(RunError):
    """A run's files differ from its signed manifest."""


class AttackError(RunError):
    """An attack or audit cannot be tried on this run: no update of its kind, another model, too few patients."""


class PrivacyError(MedveilError):
    """A privacy promise cannot be made or kept."""

    exit_code = 7


class GuaranteeError(PrivacyError):
    """A privacy claim would be hollow: the mechanism that the plan names does not give it."""


class BudgetError(PrivacyError):
    """A release would spend more than the site allows."""


class LedgerError(PrivacyError):
    """A privacy ledger is damaged, was changed by hand, or cannot be used."""


class PolicyError(PrivacyError):
    """A plan that the site's policy refuses."""


class ApprovalError(PrivacyError):
    """A plan that the site has not approved, or approvals that cannot be used."""


class AuditLogError(PrivacyError):
    """An audit log is damaged, was changed by hand, or cannot be used."""
