"""Report pages: one self-contained HTML file of whatever lies at a URI.

The pages themselves stand in `pipelines/results/pages/`, one module each.
"""

from models.bundle import WEIGHTS
from models.card import Since, render_card
from pipelines.bundles import evaluations, fetch_bundle
from pipelines.errors import InputError
from pipelines.results.pages.agreement import agreement_page
from pipelines.results.pages.evaluation import evaluation_page
from pipelines.results.pages.night import night_page
from pipelines.results.pages.study import study_page
from pipelines.results.query import is_scores
from pipelines.storage import Store, open_store

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
    target = open_store(out)
    folder, _, name = target.root.rpartition("/")
    if out.endswith("/") or folder.endswith(":/") or (target.is_local and target.path.is_dir()):
        raise InputError(f"{out}: a report is one file; name it, as in {out.rstrip('/')}/report.html")
    store = Store(folder)
    store.put(name, html.encode())
    return store.uri(name)


def _page(uri: str, compare: str | None, thumbnails: int) -> str:
    store = open_store(uri)
    kind = "study" if store.exists("study.json") else "bundle" if store.exists("bundle.json") else None
    if kind is not None:
        if thumbnails:
            raise InputError(f"{store.root} is a {kind}; thumbnails can be had of scores only")
        if kind == "study":
            return study_page(uri, compare)
        if compare is not None:
            raise InputError(f"{store.root} is a bundle; to compare models use rayscan evaluate --against")
        return _model_page(uri)
    if not is_scores(uri):
        raise InputError(
            f"{store.root}: nothing to report on; looked for study.json (a study), bundle.json (a model) and"
            " runs/ (scores)"
        )
    if compare is None:
        return night_page(uri, thumbnails)
    models = [name.strip() for name in compare.split(",")]
    if len(models) != 2:
        raise InputError(f"--compare takes two model ids, as in --compare A,B; got {compare!r}")
    if thumbnails:
        raise InputError("thumbnails belong to the night report; leave out either them or the comparison")
    return agreement_page(uri, *models)


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
