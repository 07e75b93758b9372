"""The settings of a catalogue and what its catalog.json says.

A module of its own because it imports nothing heavy: `cluster/preflight.py` reports wrong settings or a missing
catalogue before pyarrow, Ray or torch is loaded. `catalog.py` builds and reads the rows.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from pipelines.errors import InputError, NotFoundError
from pipelines.ingest.filters import Filters
from pipelines.pools import ActorLimits
from pipelines.splits import Patients
from pipelines.storage import Store, open_store

MANIFEST = "catalog.json"


@dataclass(frozen=True, kw_only=True)
class CatalogSettings:
    """How to make a catalogue."""

    labels: str | None = None
    """`path`, or the path or URI of a CSV or Parquet file; None for an archive without labels."""
    patients: Patients = "known"
    """`unknown`: split a labelled archive even where films name no patient, each as a patient of its own."""
    inspect: bool = False
    """Read every file for its header, tags and content hash."""
    val_fraction: float = 0.15
    """Share of the labelled films."""
    test_fraction: float | None = None
    """None: 0 if the archive has its own train, val or test folders, else 0.15."""
    site: str | None = None
    seed: int = 0
    filters: Filters = field(default=Filters())
    """What of the archive is listed."""
    actors: ActorLimits = field(default=ActorLimits())
    """How many actors and how much memory --inspect asks the cluster for; GPUs are never used."""
    inventory: str | None = None
    """URI of the manifest.json of an S3 Inventory, to be read instead of listing the bucket."""

    def __post_init__(self) -> None:
        test = self.test_fraction or 0.0
        if not (0 <= self.val_fraction < 1 and 0 <= test < 1 and self.val_fraction + test < 1):
            raise InputError(
                f"val fraction {self.val_fraction} and test fraction {test} must leave films to train on:"
                " give shares from 0 up to 1 whose sum is below 1"
            )


def is_catalog(uri: str) -> bool:
    """Whether a catalogue lies at this URI."""
    store = open_store(uri)
    return not (store.is_local and not store.path.is_dir()) and store.exists(MANIFEST)


def catalog_parts(store: Store) -> list[str]:
    """Names of the parts of the catalogue at a store. Raises `InputError` when there is none."""
    parts: list[str] = catalog_manifest(store)["parts"]
    return parts


def catalog_source(store: Store) -> str | None:
    """The root of the archive that a catalogue lists whole, so that a film it does not name is gone; else None.

    Raises `InputError` if there is no catalogue.
    """
    manifest = catalog_manifest(store)
    source = manifest.get("source")
    return source if isinstance(source, str) and manifest.get("whole", True) else None


def require_labels(uri: str) -> None:
    """Raise `InputError` unless a catalogue with labelled films lies at this URI."""
    summary = catalog_manifest(open_store(uri)).get("summary")
    if isinstance(summary, dict) and not summary.get("splits"):
        raise no_labels(uri)


def no_labels(catalog: str) -> InputError:
    """The error for a catalogue without labels."""
    return InputError(f"{catalog}: no labelled films; make the catalogue with --labels path or --labels FILE.csv")


def no_scans(store: Store) -> InputError:
    """The error for an archive without files; a prefix with a typo lists nothing either."""
    return InputError(f"{store.root}: no scans here; check the path")


def catalog_manifest(store: Store) -> dict[str, Any]:
    """What catalog.json says. Raises `InputError` when there is none."""
    try:
        value: dict[str, Any] = json.loads(store.get(MANIFEST))
        _ = value["parts"]
    except (NotFoundError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{store.root}: no catalogue here; make one with `rayscan catalog`") from error
    return value
