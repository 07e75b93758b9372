"""Which page is drawn for what a URI holds: a study, a bundle or scores.

It is in `cluster` because it knows all three. What needs torch or matplotlib is imported only to make a page, so
that `cluster/preflight.py` can ask cheaply what there is to report on.
"""

from typing import Literal

from pipelines.errors import InputError
from pipelines.pages.page_file import put_page
from pipelines.storage import Store, open_store
from pipelines.table.presence import has_runs

Kind = Literal["study", "bundle", "scores"]


def write_report(uri: str, out: str, *, compare: str | None = None, thumbnails: int = 0) -> str:
    """Write the report of the study, bundle or scores at `uri` to the file `out` (a URI or path); returns its URI.

    `compare` is another study to set beside a study, or for scores two model ids with a comma between them, which makes
    it the page of their agreement. `thumbnails`, of scores only, is the number of films of the worklist to show.
    Raises `InputError` when `uri` is none of the three or not what was asked for, holds files that cannot be
    understood, or `out` is no file.
    """
    return put_page(_page(uri, compare, thumbnails), out)


def reported_kind(store: Store, compare: str | None, thumbnails: int) -> Kind:
    """What there is to report on. Raises `InputError` if there is nothing, or not what is asked for."""
    kind: Kind | None = "study" if store.exists("study.json") else "bundle" if store.exists("bundle.json") else None
    if kind is None and not has_runs(store):
        raise InputError(
            f"{store.root}: nothing to report on; looked for study.json (a study), bundle.json (a model) and"
            " runs/ (scores)"
        )
    if kind is not None and thumbnails:
        raise InputError(f"{store.root} is a {kind}; thumbnails can be had of scores only")
    if kind == "bundle" and compare is not None:
        raise InputError(f"{store.root} is a bundle; to compare models use rayscan evaluate --against")
    if kind is None and compare is not None:
        compared_models(compare)
        if thumbnails:
            raise InputError("thumbnails belong to the night report; leave out either them or the comparison")
    return kind or "scores"


def compared_models(compare: str) -> tuple[str, str]:
    """The two ids in `A,B`. Raises `InputError` for anything else."""
    models = [name.strip() for name in compare.split(",")]
    if len(models) != 2:
        raise InputError(f"--compare takes two model ids, as in --compare A,B; got {compare!r}")
    return models[0], models[1]


def _page(uri: str, compare: str | None, thumbnails: int) -> str:
    kind = reported_kind(open_store(uri), compare, thumbnails)
    if kind == "study":
        from tuning.study.pages.page import study_page

        return study_page(uri, compare)
    if kind == "bundle":
        return _model_page(uri)
    if compare is not None:
        from pipelines.pages.model_agreement import model_agreement_page

        return model_agreement_page(uri, *compared_models(compare))
    from pipelines.pages.night.page import night_page

    return night_page(uri, thumbnails)


def _model_page(uri: str) -> str:
    """The card of a bundle, and the ledger beside it, which came later. Raises `BundleError` when it is not whole."""
    from models.bundle import WEIGHTS
    from pipelines.bundles import evaluations, fetch_bundle
    from pipelines.pages.card import Since, render_card

    bundle = fetch_bundle(uri)
    return render_card(
        bundle.spec,
        bundle.calibration,
        bundle.evaluation,
        bundle.lineage,
        weights=bundle.hashes[WEIGHTS],
        since=Since(model_id=bundle.model_id, ledger=evaluations(uri)),
    )
