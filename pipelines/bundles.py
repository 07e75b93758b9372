"""Bundles at a URI: publish one, fetch one into a verified local cache, record what became known of it later.

`models/bundle.py` knows local folders only; this module adds object storage.
"""

import json
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from models.bundle import AGREEMENTS, MANIFEST, Bundle, files_of, load_bundle
from pipelines.errors import AccessError, BundleError, InputError, NotFoundError
from pipelines.storage import Store, open_store

log = logging.getLogger("rayscan")


def cache_folder(kind: str) -> Path:
    """The cache for things that can be fetched or computed again: `bundles`, `scores`, `features` of films, `folds`.

    In RAYSCAN_CACHE or `~/.cache/rayscan`; readable by its owner only.
    """
    cache = Path(os.environ.get("RAYSCAN_CACHE") or "~/.cache/rayscan").expanduser().absolute()
    folder = cache / kind
    # The cache folder itself too: RAYSCAN_CACHE may lie in a scratch folder that everyone can read.
    for made in (cache, folder):
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def publish_bundle(folder: Path, uri: str) -> None:
    """Copy a saved bundle to its URI, the manifest last: a half-copied bundle never loads."""
    bundle = load_bundle(folder)
    store = open_store(uri)
    for name in (*bundle.hashes, MANIFEST):
        store.put(name, (folder / name).read_bytes())


def fetch_bundle(uri: str) -> Bundle:
    """The bundle at a URI, verified. A remote one is cached by its model id and not fetched again.

    Only the agreements found later are: they lie outside its identity, and another machine may have added some.
    Raises `BundleError` if the bundle is absent, incomplete or was changed after it was made.
    """
    store = open_store(uri)
    if store.is_local:
        return load_bundle(store.path)
    kept = cache_folder("bundles") / _model_id(store)
    if not kept.exists():
        _download(store, kept)
    _fetch_agreements(store, kept)
    return load_bundle(kept)


def record_evaluation(uri: str, entry: Mapping[str, Any]) -> None:
    """Add an entry to the bundle's ledger: reading a test split often means fitting to it. Not part of the model id."""
    open_store(uri).create(f"ledger/{_stamp()}.json", json.dumps(dict(entry), indent=1).encode())


def record_agreements(uri: str, bundle: Bundle, entry: Mapping[str, Any]) -> None:
    """Add how engines agree with this bundle: `engines` (name -> agreement), and where. Not part of the model id."""
    whole = {"model_id": bundle.model_id, **entry, "when": datetime.now(UTC).isoformat(timespec="seconds")}
    open_store(uri).create(f"{AGREEMENTS}/{_stamp()}.json", json.dumps(whole, indent=1).encode())


def require_own_films(bundle: Bundle, fingerprint: str, dataset: str) -> None:
    """Raise `InputError` unless `dataset`, of this fingerprint, is the data set the bundle was made from."""
    if bundle.lineage.get("dataset_fingerprint") != fingerprint:
        raise InputError(
            f"{dataset}: model {bundle.model_id} was made from another data set, on whose validation films its"
            " thresholds were locked; name that one"
        )


def evaluations(uri: str) -> list[dict[str, Any]]:
    """The ledger's entries, oldest first."""
    ledger = open_store(uri).child("ledger")
    if ledger.is_local and not ledger.path.is_dir():
        return []
    keys = sorted(info.key for chunk in ledger.list() for info in chunk)
    return [json.loads(ledger.get(key)) for key in keys]


def _stamp() -> str:
    """A name that sorts by time, and that no other process chooses."""
    return f"{datetime.now(UTC).strftime('%Y%m%dT%H%M%S.%fZ')}-{secrets.token_hex(3)}"


def _fetch_agreements(store: Store, folder: Path) -> None:
    """Have in the copy of a bundle what lies in its AGREEMENTS now, and nothing that was taken away there."""
    kept = folder / AGREEMENTS
    try:
        there = {info.key.rpartition("/")[2] for chunk in store.list(AGREEMENTS) for info in chunk}
    except AccessError:
        log.warning("%s may not be listed: engines compared after the model was made are not known", store.root)
        there = set()
    for gone in [path for path in kept.glob("*.json") if path.name not in there]:
        gone.unlink(missing_ok=True)
    for name in there - {path.name for path in kept.glob("*.json")}:
        kept.mkdir(exist_ok=True)
        part = kept / f".{name}.{secrets.token_hex(4)}"
        part.write_bytes(store.get(f"{AGREEMENTS}/{name}"))
        part.replace(kept / name)


def _model_id(store: Store) -> str:
    try:
        model_id = json.loads(store.get(MANIFEST))["model_id"]
    except NotFoundError as error:
        raise BundleError(f"{store.root}: no bundle here ({MANIFEST} is missing)") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{store.uri(MANIFEST)}: not a rayscan bundle") from error
    if not (isinstance(model_id, str) and model_id.isalnum()):
        raise BundleError(f"{store.uri(MANIFEST)}: not a rayscan bundle")
    return model_id


def _download(store: Store, folder: Path) -> None:
    """Fetch into a temporary folder and rename it, so that no other process on this node sees half a bundle."""
    partial = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        manifest = store.get(MANIFEST)
        (partial / MANIFEST).write_bytes(manifest)
        for name in files_of(manifest):
            (partial / name).write_bytes(store.get(name))
        load_bundle(partial)
        partial.rename(folder)
    except NotFoundError as error:
        raise BundleError(f"{error}; {store.root} is not a whole bundle") from error
    except OSError:
        # Another process on this node was faster; its copy was verified like ours.
        if not folder.exists():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
