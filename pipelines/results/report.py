"""Report pages: one self-contained HTML file of whatever lies at a URI.

The pages themselves stand in `pipelines/results/pages/`, one module each.
"""

from pipelines.errors import InputError
from pipelines.results.pages.evaluation import evaluation_page
from pipelines.results.pages.model import model_page
from pipelines.results.pages.night import night_page
from pipelines.results.pages.page import put_page
from pipelines.results.pages.study import study_page
from pipelines.results.query import is_scores
from pipelines.storage import open_store

__all__ = ["evaluation_page", "put_page", "write_report"]


def write_report(uri: str, out: str) -> str:
    """Write the report of the study, bundle or scores at `uri` to the file `out` (a URI or path); returns its URI.

    Raises `InputError` when `uri` is none of the three, holds files that cannot be understood, or `out` is no file.
    """
    store = open_store(uri)
    if store.exists("study.json"):
        html = study_page(uri)
    elif store.exists("bundle.json"):
        html = model_page(uri)
    elif is_scores(uri):
        html = night_page(uri)
    else:
        raise InputError(
            f"{store.root}: nothing to report on; looked for study.json (a study), bundle.json (a model) and"
            " runs/ (scores)"
        )
    return put_page(html, out)
