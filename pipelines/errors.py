"""The exception tree.

RayscanError                  exit 1   one line for the user, no traceback
├── InputError                exit 2   wrong usage or input: what, and how to mend it
│   ├── BundleError           exit 2   a model bundle is incomplete or was changed
│   ├── NotFoundError         exit 2   no object at this URI
│   │   └── NoBucketError     exit 2   not even the bucket it would be in
│   └── AccessError           exit 2   the store refuses these credentials
├── StorageError              exit 1   the store failed after bounded retries; worth trying again later
├── IncompleteError           exit 3   work is left; the same command resumes it
│   └── ClusterError          exit 3   Ray could not continue: workers or nodes were lost
└── ScanError                 (never reaches the command line: it becomes a row)
    ├── UnreadableScanError            the bytes are not a readable scan
    └── RejectedScanError              readable, but not a film for this model

A `ScanError` carries a `Reason` from the closed list in `pipelines/contracts.py`, and nothing of the file's content:
DICOM libraries quote patient data in their messages.
"""

from typing import TYPE_CHECKING

from models.errors import BundleError, InputError, RayscanError

if TYPE_CHECKING:
    from pipelines.contracts import Reason  # imports pyarrow, and the light modules raise these errors

__all__ = [
    "AccessError",
    "BundleError",
    "ClusterError",
    "IncompleteError",
    "InputError",
    "NoBucketError",
    "NotFoundError",
    "RayscanError",
    "RejectedScanError",
    "ScanError",
    "StorageError",
    "UnreadableScanError",
]


class NotFoundError(InputError):
    """No object at this URI."""


class NoBucketError(NotFoundError):
    """The bucket does not exist, so nothing can be said about what it held."""


class AccessError(InputError):
    """The store refuses these credentials, or there are none."""


class StorageError(RayscanError):
    """The store failed after bounded retries: throttled, unreachable or broken. Try again later."""


class IncompleteError(RayscanError):
    """Work is left; the message says how much. The same command resumes it."""

    exit_code = 3


class ClusterError(IncompleteError):
    """Ray could not continue: its workers do not start, or die faster than they are restarted."""


class ScanError(RayscanError):
    """One scan cannot be scored. It becomes a row with this reason; it never stops a run.

    `detail` says more where the reason is a family: which transfer syntax, what kind of object. It is made of names
    from standards and of counts, never of what stands in a file.
    """

    def __init__(self, reason: "Reason", detail: str = "") -> None:
        super().__init__(f"{reason.value} ({detail})" if detail else reason.value)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> "tuple[type[ScanError], tuple[Reason, str]]":
        return type(self), (self.reason, self.detail)


class UnreadableScanError(ScanError):
    """The bytes are not a readable scan."""


class RejectedScanError(ScanError):
    """Readable, but not a film for this model."""
