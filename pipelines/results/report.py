"""Report pages: one self-contained HTML file of whatever lies at a URI.

The pages themselves stand in `pipelines/results/pages/`, one module each.
"""

from models.bundle import WEIGHTS
from models.card import Since, render_card
from pipelines.bundles import evaluations, fetch_bundle
from pipelines.results.pages.agreement import agreement_page
from pipelines.results.pages.evaluation import evaluation_page
from pipelines.results.pages.night import night_page
from pipelines.results.pages.study import study_page
from pipelines.storage import open_store
from pipelines.table.kinds import compared_models, page_place, reported_kind

__all__ = ["agreement_page", "evaluation_page", "put_page", "write_report"]


def write_report(uri: str, out: str, *, compare: str | None = None, thumbnails: int = 0) -> str:
    """Write the report of the study, bundle or scores at `uri` to the file `out` (a URI or path); returns its URI.

    `compare` is another study to set beside a study, or for scores two model ids with a comma between them, which makes
    it the page of their agreement. `thumbnails`, of scores only, is the number of films of the worklist to show.
    Raises `InputError` when `uri` is none of the three or not what was asked for, holds files that cannot be
    understood, or `out` is no file.
    """
    return put_page(_page(uri, compare, thumbnails), out)


def put_page(html: str, out: str) -> str:
    """Write a page to a local path or a URI, whole or not at all; returns its URI.

    Raises `InputError` when `out` names a folder or a bucket instead of a file.
    """
    store, name = page_place(out)
    store.put(name, html.encode())
    return store.uri(name)


def _page(uri: str, compare: str | None, thumbnails: int) -> str:
    store = open_store(uri)
    kind = reported_kind(store, compare, thumbnails)
    if kind == "study":
        return study_page(uri, compare)
    if kind == "bundle":
        return _model_page(uri)
    return night_page(uri, thumbnails) if compare is None else agreement_page(uri, *compared_models(compare))


def _model_page(uri: str) -> str:
    """The card of a bundle, and the ledger beside it, which came later. Raises `BundleError` when it is not whole."""
    bundle = fetch_bundle(uri)
    return render_card(
        bundle.spec,
        bundle.calibration,
        bundle.evaluation,
        bundle.lineage,
        weights=bundle.hashes[WEIGHTS],
        since=Since(model_id=bundle.model_id, ledger=evaluations(uri)),
    )
