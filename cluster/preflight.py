"""Checks that each verb makes before it starts work, the cheapest first.

Ray takes ten seconds to start and torch two to import; a path that is misspelt should cost neither. So nothing heavy is
imported here, and a remote store is asked once or twice. The checks are those of the packages behind the verbs,
which make them again when they get there: a file may have gone meanwhile.

All raise `InputError` or a subclass of it, which says what is wrong and how to mend it.
"""

import os
import socket
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from models.messages import did_you_mean
from pipelines.errors import InputError

if TYPE_CHECKING:
    from models.bundle import Bundle
    from pipelines.ingest.dataset_info import DatasetInfo
    from tuning.recipes.recipe import Recipe
    from tuning.search.settings import SearchSettings

KNOCK_SECONDS: Final = 5
DEMO_MARKER: Final = ".rayscan-demo"
"""Stands in a folder the demo made, so that it may empty it the next time, and no other."""


def check_demo(out: str) -> None:
    """The folder is local, and holds nothing but what an earlier demo made."""
    from pipelines.storage import open_store

    store = open_store(out)
    folder = store.path
    store.require_place()
    if folder.exists() and any(folder.iterdir()) and not (folder / DEMO_MARKER).exists():
        raise InputError(f"{folder} holds files the demo did not make; give --out another folder")


def check_archive(uri: str) -> None:
    """There is a folder or bucket, and something in it."""
    from pipelines.ingest.catalog_info import no_scans
    from pipelines.storage import open_store

    store = open_store(uri)
    if not store.has_objects():
        raise no_scans(store)


def check_source(uri: str) -> None:
    """There is a catalogue or an archive."""
    from pipelines.ingest.catalog_info import is_catalog

    if not is_catalog(uri):
        check_archive(uri)


def check_uris(file: str) -> None:
    """A file that lists URIs is there."""
    from pipelines.storage import require_file

    require_file(file, "file of URIs")


def check_labels(labels: str | None) -> None:
    """A CSV file of labels is there."""
    from pipelines.storage import require_file

    if labels not in {None, "path"}:
        require_file(str(labels), "file of labels")


def check_inventory(manifest: str | None) -> None:
    """The manifest of an S3 Inventory is there."""
    from pipelines.storage import require_file

    if manifest is not None:
        require_file(manifest, "manifest of an S3 Inventory")


def check_catalog(uri: str) -> None:
    """There is a catalogue."""
    from pipelines.ingest.catalog_info import catalog_parts
    from pipelines.storage import open_store

    catalog_parts(open_store(uri))


def check_labelled(uri: str) -> None:
    """There is a catalogue, and its films have labels."""
    from pipelines.ingest.catalog_info import require_labels

    require_labels(uri)


def check_place(uri: str) -> None:
    """Something can be written there."""
    from pipelines.storage import open_store

    open_store(uri).require_place()


def check_uri(uri: str) -> None:
    """It is the URI of a store that rayscan knows."""
    from pipelines.storage import open_store

    open_store(uri)


def check_page(out: str | None) -> None:
    """A page can be written there, if one is wanted."""
    from pipelines.pages.page_file import page_place

    if out is not None:
        page_place(out)[0].require_place()


def check_dataset(uri: str, splits: Iterable[str]) -> "DatasetInfo":
    """There is a data set with films in these splits."""
    from pipelines.ingest.dataset_info import read_dataset_info, require_split
    from pipelines.storage import open_store

    info = read_dataset_info(uri)
    for split in splits:
        require_split(info, split, open_store(uri).root)
    return info


def check_weights(weights: str | None) -> None:
    """A file of weights is there."""
    from pipelines.storage import require_file
    from tuning.toml_files import HUB

    if weights not in {None, HUB}:
        require_file(str(weights), "file of weights")


def check_recipe(recipe: "Recipe", dataset: str) -> None:
    """The data set has what the recipe is to learn from, and the weights it starts from are there."""
    from tuning.recipes.recipe import require_weights, spec_of

    require_weights(recipe)
    check_weights(recipe.weights)
    spec_of(recipe, check_dataset(dataset, ("train", "val")), dataset)


def check_bundles(uris: Sequence[str]) -> "list[Bundle]":
    """There are whole bundles; remote ones are in the local cache from then on."""
    from pipelines.bundles import fetch_bundle

    return [fetch_bundle(uri) for uri in uris]


def check_evaluation(bundles: Sequence[str], dataset: str, split: str) -> None:
    """There are bundles, and a data set whose split has films prepared as they need them."""
    from pipelines.ingest.dataset_info import check_fits

    opened = check_bundles(bundles)
    info = check_dataset(dataset, (split,))
    for bundle in opened:
        check_fits(bundle.spec.preprocessing, info, dataset)


def check_agreement(bundle: str, dataset: str) -> None:
    """There is a bundle that can be added to, and the data set it was made from."""
    from pipelines.bundles import fetch_bundle, require_own_films
    from pipelines.ingest.dataset_info import read_dataset_info

    check_evaluation([bundle], dataset, "val")
    require_own_films(fetch_bundle(bundle), read_dataset_info(dataset).fingerprint, dataset)
    check_place(bundle)


def check_search(dataset: str, out: str, settings: "SearchSettings", optuna_storage: str | None) -> None:
    """There are films to search on, what the search starts from, and room for the study, or the one to go on with."""
    from dataclasses import asdict

    from pipelines.storage import open_store
    from tuning.search.mirror_place import check_storage
    from tuning.study.store import check_goes_on, read_study, require_free
    from tuning.toml_files import read_toml

    if optuna_storage is not None:
        check_storage(optuna_storage)
    if settings.space is not None:
        read_toml("space", settings.space)
    check_weights(settings.weights)
    info = check_dataset(dataset, ("train", "val"))
    if settings.warm_start is not None:
        read_study(open_store(settings.warm_start))
    store = open_store(out)
    store.require_place()
    if settings.resume:
        study = read_study(store)
        check_goes_on(store, study, dataset=dataset, fingerprint=info.fingerprint, settings=asdict(settings))
    else:
        require_free(store)


def check_runs(uri: str) -> None:
    """A run was recorded there."""
    from pipelines.table.presence import require_runs

    require_runs(uri)


def check_begun(uri: str) -> None:
    """A run was begun there, even if it died while it planned."""
    from pipelines.storage import open_store
    from pipelines.table.presence import has_runs, no_run

    store = open_store(uri)
    if not has_runs(store):
        next(store.list(), None)  # raises where there is no such folder or bucket
        raise no_run(store)


def check_models(uri: str) -> None:
    """A run was recorded there, or a model promoted."""
    from pipelines.storage import open_store
    from pipelines.table.presence import has_runs
    from pipelines.table.registry import read_entries

    store = open_store(uri)
    if not has_runs(store) and not read_entries(store):
        next(store.list(), None)  # raises where there is no such folder or bucket
        raise InputError(f"{store.root}: no run was recorded here, and no model promoted; check the path")


def find_model(model: str, scores: str) -> str:
    """The bundle to score with: where a role is named, that of the model that has it at these scores."""
    from pipelines.table.registry import ROLES, bundle_in_role

    return bundle_in_role(scores, model) if model in ROLES else model


def check_scores(uri: str, model: str | None) -> None:
    """There are scores, of this model if one is named."""
    from pipelines.table.presence import require_scores

    require_scores(uri, model)


def check_report(subject: str, out: str, compare: str | None, thumbnails: int) -> None:
    """There is something to report on, with what is asked for, and the page can be written."""
    from cluster.report import reported_kind
    from pipelines.pages.page_file import check_thumbnails
    from pipelines.storage import open_store
    from tuning.study.store import read_study

    check_thumbnails(thumbnails)
    check_page(out)
    if reported_kind(open_store(subject), compare, thumbnails) == "study" and compare is not None:
        read_study(open_store(compare))


def check_ray(address: str | None) -> None:
    """If an address of a cluster is named, something listens there."""
    from cluster.admission import check_address

    check_address(address or os.environ.get("RAY_ADDRESS") or "local")


def check_verb(name: str, known: Iterable[str]) -> None:
    """The word is a verb of rayscan."""
    verbs = list(known)
    if name not in verbs:
        hint = did_you_mean(name, verbs) or f"choose {', '.join(verbs)}"
        raise InputError(f"there is no verb {name!r} to submit; {hint}")


def check_sent(command: Sequence[str]) -> None:
    """Nothing of a command that goes to a cluster is secret: its Jobs API shows all of it."""
    if any(word == "--notify" or word.startswith("--notify=") for word in command):
        raise InputError(
            "an address of --notify may hold a secret, and a job's command is shown on the cluster's dashboard; set"
            " RAYSCAN_NOTIFY in the nodes' environment instead"
        )


def listens(url: str) -> bool:
    """Whether something accepts connections at the host and port of an http:// or https:// URL."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=KNOCK_SECONDS).close()
    except OSError:
        return False
    return True
