"""The page of `rayscan audit`: what in an archive would spoil a study, with pictures."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

from pipelines.ingest.audit import Audit
from pipelines.ingest.looked import SHOWN, SHOWN_SIDE, Film, Pixels
from pipelines.ingest.shortcuts import FACTS, PARTS, PROBES
from pipelines.pages.audit_charts import aspects_chart, greys_chart, sizes_chart
from pipelines.pages.frame import data_uri, render

GROUPS_SHOWN: Final = 12
ACROSS: Final = 6
"""Films side by side in a picture of samples."""


def audit_page(findings: Audit) -> str:
    """HTML of the findings: the verdicts first, then the figures and films behind them."""
    films = findings.looked.films if findings.looked else ()
    return render(
        "audit.html",
        made=datetime.now(UTC),
        title="Audit",
        audit=findings,
        names=FACTS,
        probes=PROBES,
        parts_of_border=PARTS,
        charts=_charts(findings),
        grids=_grids(films),
        groups=[_group(films, group) for group in findings.groups[:GROUPS_SHOWN]],
    )


def _charts(findings: Audit) -> list[tuple[Any, str]]:
    charts = []
    if findings.shapes:
        charts.append((aspects_chart(findings.shapes), "Width over height of the files; each class adds up to 100 %."))
        charts.append((sizes_chart(findings.shapes), "Size of the films, all or a sample of 2,000 of each class."))
    if findings.looked and findings.looked.films:
        charts.append(
            (greys_chart(findings.looked.films), "Grey levels of the films as a model is given them, in the mean.")
        )
    return charts


def _grids(films: Sequence[Film]) -> list[dict[str, Any]]:
    """Pictures of the first films of each label: as they are, and harmonised."""
    grids = []
    for label in sorted({film.row["label"] or "" for film in films}):
        pictures = [film.pictures for film in films if (film.row["label"] or "") == label and film.pictures]
        if pictures:
            grids.append(
                {
                    "label": label or "without a label",
                    "films": len(pictures),
                    "plain": data_uri(_mosaic([plain for plain, _ in pictures[:SHOWN]])),
                    "harmonised": data_uri(_mosaic([harmonised for _, harmonised in pictures[:SHOWN]])),
                }
            )
    return grids


def _mosaic(pictures: list[Pixels]) -> Pixels:
    gap, side = 4, SHOWN_SIDE
    rows = -(-len(pictures) // ACROSS)
    mosaic = np.full((rows * (side + gap) - gap, ACROSS * (side + gap) - gap), 128, dtype=np.uint8)
    for at, picture in enumerate(pictures):
        top, left = (at // ACROSS) * (side + gap), (at % ACROSS) * (side + gap)
        mosaic[top : top + side, left : left + side] = picture
    return mosaic


def _group(films: Sequence[Film], group: Sequence[int]) -> dict[str, Any]:
    """A group of copies: thumbnails side by side, and which films they are, by scan id: a name may tell the patient."""
    shown = [films[at] for at in group[:4]]
    thumbs = np.concatenate([np.kron(film.thumb, np.ones((3, 3), dtype=np.uint8)) for film in shown], axis=1)
    return {
        "picture": data_uri(thumbs),
        "films": [
            f"{film.row['scan_id'][:12]} ({film.row['split'] or 'no split'}, {film.row['label'] or 'no label'})"
            for film in shown
        ],
        "more": len(group) - len(shown),
    }
