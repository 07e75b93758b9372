"""The schema of every table rayscan writes, and the closed lists of values; defined here only.

DICOM header fields pass an allow-list before they reach these tables: no patient name, birth date, accession number
or raw patient id is ever written. `patient_key` is an HMAC (see `pipelines/ingest/patients.py`).
"""

import hashlib
from enum import StrEnum

import pyarrow as pa


class Status(StrEnum):
    """What became of a scan. OUTCOMES are those of a planned one; the table also knows `removed`."""

    SCORED = "scored"
    REJECTED = "rejected"
    """Readable, but not a film for this model."""
    UNREADABLE = "unreadable"
    """The bytes cannot be decoded; reading them again will not help."""
    FAILED = "failed"
    """Transient: storage or a machine failed; the next run tries again."""
    REMOVED = "removed"
    """A tombstone: the file is no longer in its archive. Nobody plans it; the run that missed it writes it."""


OUTCOMES = (Status.SCORED, Status.REJECTED, Status.UNREADABLE, Status.FAILED)
"""Each planned scan has exactly one of these in the end."""


class Reason(StrEnum):
    """Why a scan was not scored: a closed list. STATUS_OF_REASON gives the status of each."""

    # unreadable
    EMPTY_FILE = "empty_file"
    UNKNOWN_FORMAT = "unknown_format"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    NO_PIXELS = "no_pixels"
    TOO_LARGE = "too_large"
    UNSUPPORTED = "unsupported"
    # rejected
    NOT_IMAGE = "not_image"
    NOT_XRAY = "not_xray"
    FOR_PROCESSING = "for_processing"
    NOT_CHEST = "not_chest"
    NOT_FRONTAL = "not_frontal"
    OUTSIDE_INTENDED_USE = "outside_intended_use"
    BLANK = "blank"
    INVERTED = "inverted"
    ROTATED = "rotated"
    CROPPED = "cropped"
    UNFAMILIAR = "unfamiliar"
    # failed
    VANISHED = "vanished"
    CHANGED = "changed"
    ACCESS_DENIED = "access_denied"
    STORAGE_ERROR = "storage_error"
    CRASHED = "crashed"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    WORKER_LOST = "worker_lost"
    # removed
    LEFT_ARCHIVE = "left_archive"


STATUS_OF_REASON: dict[Reason, Status] = {
    Reason.EMPTY_FILE: Status.UNREADABLE,
    Reason.UNKNOWN_FORMAT: Status.UNREADABLE,
    Reason.TRUNCATED: Status.UNREADABLE,
    Reason.CORRUPT: Status.UNREADABLE,
    Reason.NO_PIXELS: Status.UNREADABLE,
    Reason.TOO_LARGE: Status.UNREADABLE,
    Reason.UNSUPPORTED: Status.UNREADABLE,
    Reason.NOT_IMAGE: Status.REJECTED,
    Reason.NOT_XRAY: Status.REJECTED,
    Reason.FOR_PROCESSING: Status.REJECTED,
    Reason.NOT_CHEST: Status.REJECTED,
    Reason.NOT_FRONTAL: Status.REJECTED,
    Reason.OUTSIDE_INTENDED_USE: Status.REJECTED,
    Reason.BLANK: Status.REJECTED,
    Reason.INVERTED: Status.REJECTED,
    Reason.ROTATED: Status.REJECTED,
    Reason.CROPPED: Status.REJECTED,
    Reason.UNFAMILIAR: Status.REJECTED,
    Reason.VANISHED: Status.FAILED,
    Reason.CHANGED: Status.FAILED,
    Reason.ACCESS_DENIED: Status.FAILED,
    Reason.STORAGE_ERROR: Status.FAILED,
    Reason.CRASHED: Status.FAILED,
    Reason.TIMED_OUT: Status.FAILED,
    Reason.OUT_OF_MEMORY: Status.FAILED,
    Reason.WORKER_LOST: Status.FAILED,
    Reason.LEFT_ARCHIVE: Status.REMOVED,
}

LABELS = ("NORMAL", "PNEUMONIA")
EXCLUDED = "excluded"
"""Split of a film outside test whose patient also has films in the archive's test folder; it is used for nothing."""


def scan_id(uri: str, etag: str) -> str:
    """Identity of one version of one file: 32 hex digits of BLAKE2b over URI and etag. A changed file is a new scan."""
    return hashlib.blake2b(f"{uri}\n{etag}".encode(), digest_size=16).hexdigest()


TIMESTAMP = pa.timestamp("us", tz="UTC")

CATALOG = pa.schema(
    [
        pa.field("scan_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("modified", TIMESTAMP, nullable=False),
        pa.field("format", pa.string()),  # jpeg, png or dicom by the file name; null if the name does not tell
        pa.field("site", pa.string()),
        pa.field("patient_key", pa.string()),
        pa.field("study_date", pa.date32()),
        pa.field("view", pa.string()),
        pa.field("modality", pa.string()),
        pa.field("body_part", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("label", pa.string()),  # one of LABELS
        pa.field("subtype", pa.string()),  # bacteria, virus
        pa.field("split", pa.string()),  # one of pipelines.splits.SPLITS, or EXCLUDED
        pa.field("content_hash", pa.string()),  # with --inspect: BLAKE2b of the bytes, to find duplicates
        pa.field("problem", pa.string()),  # with --inspect: the Reason this file cannot be read
    ]
)


def dataset_schema(size: int) -> pa.Schema:
    """Prepared films; `pixels` is a fixed-shape tensor column of uint8 grey levels [size, size]."""
    return pa.schema(
        [
            pa.field("scan_id", pa.string(), nullable=False),
            pa.field("uri", pa.string(), nullable=False),
            pa.field("pixels", pa.fixed_shape_tensor(pa.uint8(), (size, size)), nullable=False),
            pa.field("label", pa.string(), nullable=False),
            pa.field("subtype", pa.string()),
            pa.field("split", pa.string(), nullable=False),
            pa.field("patient_key", pa.string()),
            pa.field("site", pa.string()),
            pa.field("view", pa.string()),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            # Of the header, see pipelines/decoding/columns.py; null where it says nothing, and for JPEG and PNG.
            pa.field("study_date", pa.date32()),
            pa.field("modality", pa.string()),
            pa.field("manufacturer", pa.string()),
            pa.field("age_years", pa.int16()),
            pa.field("presentation_intent", pa.string()),
        ]
    )


PLAN = pa.schema(
    [
        pa.field("scan_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("site", pa.string()),
        pa.field("patient_key", pa.string()),
        pa.field("study_date", pa.date32()),
        pa.field("supersedes", pa.bool_(), nullable=False),  # the model has a row of this uri already
        pa.field("shard", pa.int32(), nullable=False),
    ]
)

SCORES = pa.schema(
    [
        pa.field("scan_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("site", pa.string()),
        pa.field("patient_key", pa.string()),
        pa.field("study_date", pa.date32()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),  # more on the reason: which transfer syntax, what kind of object
        pa.field("probability", pa.float32()),  # of pneumonia, calibrated
        pa.field("class_probabilities", pa.list_(pa.float32())),  # in the order of the bundle's classes
        pa.field("prediction", pa.string()),  # one of LABELS, at `operating_point`
        pa.field("operating_point", pa.string()),
        pa.field("ood_score", pa.float32()),  # distance from the training films in feature space
        pa.field("grey_mean", pa.float32()),  # mean grey level of the decoded film, 0 to 255; used to detect drift
        pa.field("grey_spread", pa.float32()),  # standard deviation of the grey levels
        # Of the header, see pipelines/decoding/columns.py; null where it says nothing, and for JPEG and PNG.
        pa.field("view", pa.string()),
        pa.field("modality", pa.string()),
        pa.field("body_part", pa.string()),
        pa.field("manufacturer", pa.string()),
        pa.field("device_model", pa.string()),
        pa.field("age_years", pa.int16()),  # 90 for all who are older
        pa.field("sex", pa.string()),
        pa.field("presentation_intent", pa.string()),
        pa.field("decoder_version", pa.string(), nullable=False),  # see pipelines/decoding/version.py
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        # The version of the table its run was planned from: it orders the rows of a file, whatever a clock says.
        pa.field("plan_version", pa.int64(), nullable=False),
        # The model had a row of this uri when the run was planned. Only such files have several rows of a model.
        pa.field("supersedes", pa.bool_(), nullable=False),
        pa.field("scored_at", TIMESTAMP, nullable=False),
        pa.field("model_id", pa.string(), nullable=False),
        pa.field("date", pa.date32(), nullable=False),  # the UTC day its run was planned
    ]
)
"""The table of scores. The last two columns are its partitions."""

PARTITIONS = ("model_id", "date")
PART = pa.schema([field for field in SCORES if field.name not in PARTITIONS])
"""A file of the table: the names of its folders give the partitions."""

IDENTITY_FOLDER = "identity"
"""Of the scores, apart from the table; see pipelines/scoring/identity.py."""
IDENTITY = pa.schema(
    [
        pa.field("scan_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("study_uid", pa.string(), nullable=False),
        pa.field("series_uid", pa.string(), nullable=False),
        pa.field("instance_uid", pa.string(), nullable=False),
    ]
)
"""What leads from a score to its image in the PACS."""

TRIALS = pa.schema(
    [
        pa.field("trial_id", pa.string(), nullable=False),
        pa.field("number", pa.int32(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # search, baseline, probe, final
        pa.field("status", pa.string(), nullable=False),  # complete, pruned, failed
        pa.field("model", pa.string()),
        pa.field("parameters", pa.string(), nullable=False),  # JSON
        pa.field("auc", pa.float64()),  # of the best epoch, on the validation films
        pa.field("objective", pa.float64()),  # of the same epoch; null in studies made before other objectives existed
        pa.field("latency_ms", pa.float64()),  # per film, on the engine of the trial's machine; null if not measured
        pa.field("epochs", pa.int32(), nullable=False),
        pa.field("history", pa.string(), nullable=False),  # JSON: metrics of each epoch
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("finished_at", TIMESTAMP, nullable=False),
    ]
)
