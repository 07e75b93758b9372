"""The page of two models over one archive: where they agree, where they differ, and in which direction.

It compares the scans to which both models gave a probability, by each model's newest row. It uses no labels, so it does
not say which model is right. DuckDB computes all figures; of single films only the most different leave the database.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import duckdb
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from pipelines.contracts import LABELS
from pipelines.errors import InputError
from pipelines.pages.charts import BLUE, GREY, VERMILION, chart
from pipelines.pages.frame import render
from pipelines.storage import open_store
from pipelines.table.query import fetch_rows, read_scores

BINS: Final = 40
SITES_SHOWN: Final = 20
FILMS_SHOWN: Final = 25
FEW: Final = 100
"""With fewer films in common, no verdict is given."""
RARE: Final = 0.01
"""Share of films called differently below which two models are said to agree."""
ONE_SIDED: Final = 3.29
"""McNemar's statistic, a standard normal, at a two-sided 0.001."""


def model_agreement_page(uri: str, model_a: str, model_b: str) -> str:
    """HTML of how two models scored the same archive.

    A model is given by its id or the start of it. Raises `InputError` if it scored nothing there, if several ids start
    like that, or if the two models have no scan in common.
    """
    root = open_store(uri).root
    asked = read_scores(uri, lambda connection: _ask(connection, root, model_a, model_b))
    a, b, totals, sites = asked.a, asked.b, asked.totals, asked.sites
    return render(
        "model_agreement.html",
        made=datetime.now(UTC),
        title="Agreement of two models",
        scores=root,
        a=a,
        b=b,
        totals=totals,
        flips=totals["to_positive"] + totals["to_negative"],
        alone=asked.alone,
        sites=sites,
        more_sites=sites[0]["sites"] - len(sites),
        films=asked.films,
        points=asked.points,
        histogram=_histogram_chart(asked.cells, a, b),
        verdict=verdict(totals),
    )


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """The answers of the table; each dict is one row of a result."""

    a: str
    b: str
    alone: dict[str, int]
    totals: dict[str, Any]
    sites: list[dict[str, Any]]
    cells: list[dict[str, Any]]
    films: list[dict[str, Any]]
    points: dict[str, str]


def _ask(connection: duckdb.DuckDBPyConnection, root: str, model_a: str, model_b: str) -> _Answers:
    a, b = (_model(connection, root, name) for name in (model_a, model_b))
    if a == b:
        raise InputError(f"{model_a} and {model_b} are the same model, {a}; compare two")
    alone = _pair_up(connection, a, b)
    totals = _totals(connection)
    if not totals["films"]:
        raise InputError(f"{root}: {a} and {b} have no scan in common; score one archive with both")
    return _Answers(
        a=a,
        b=b,
        alone=alone,
        totals=totals,
        sites=_sites(connection),
        cells=_cells(connection),
        films=_most_different(connection),
        points={model: _points(connection, model) for model in (a, b)},
    )


def verdict(totals: Mapping[str, Any]) -> str:
    """What to do next, in a sentence or two; A is the model in use, B its possible successor."""
    films, to_positive, to_negative = totals["films"], totals["to_positive"], totals["to_negative"]
    flips = to_positive + to_negative
    if films < FEW:
        return f"Only {films} films were scored by both: score more of the archive with both before deciding anything."
    if flips and abs(to_positive - to_negative) / math.sqrt(flips) > ONE_SIDED:
        more = "more" if to_positive > to_negative else "fewer"
        return (
            f"B calls {more} films positive than A, beyond what chance explains. Before B replaces A, have a"
            " radiologist read films on which they differ, and choose B's operating point to fit the readers' workload."
        )
    if flips > RARE * films:
        return (
            "They differ equally in both directions: as many films are called positive, but not the same. Have a"
            " radiologist read the most different below to see which model is right; evaluate both on the same labels."
        )
    return (
        "They agree on almost every film. This page gives no reason against replacing A by B; B's evaluation must"
        " decide."
    )


def _model(connection: duckdb.DuckDBPyConnection, root: str, name: str) -> str:
    known = [model for (model,) in connection.execute("SELECT DISTINCT model_id FROM runs ORDER BY 1").fetchall()]
    matches = [model for model in known if name and model.startswith(name)]
    if name in known:
        return name
    if len(matches) != 1:
        which = "no model" if not matches else "more than one model"
        raise InputError(f"{root}: {which} {name!r} scored here; choose from {', '.join(known)}")
    return str(matches[0])


def _pair_up(connection: duckdb.DuckDBPyConnection, a: str, b: str) -> dict[str, int]:
    """Make the table `pairs` of scans both models scored; returns how many only one of them did.

    Columns: scan_id, site, a and b (probabilities), was and now (whether A and B called it positive). They are the rows
    of the view `agreement`; for two models and without uris they take less than half the time.
    """
    for name, model in (("of_a", a), ("of_b", b)):
        connection.execute(
            f"CREATE TEMP TABLE {name} AS SELECT scan_id, site, probability, prediction = ? AS positive FROM latest"  # noqa: S608
            " WHERE model_id = ? AND status = 'scored'",
            [LABELS[1], model],
        )
    connection.execute(
        "CREATE TEMP TABLE pairs AS SELECT scan_id, of_a.site, of_a.probability AS a, of_b.probability AS b,"
        " of_a.positive AS was, of_b.positive AS now FROM of_a JOIN of_b USING (scan_id)"
    )
    [(both, only_a, only_b)] = connection.execute(
        "SELECT (SELECT count(*) FROM pairs), (SELECT count(*) FROM of_a), (SELECT count(*) FROM of_b)"
    ).fetchall()
    return {"a": only_a - both, "b": only_b - both}


_FLIPS: Final = "count(*) FILTER (now AND NOT was) AS to_positive, count(*) FILTER (was AND NOT now) AS to_negative"


def _totals(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """Counts, differences and Spearman's rank correlation (ties at their mean rank; None if undefined)."""
    (totals,) = fetch_rows(
        connection,
        f"SELECT count(*) AS films, {_FLIPS}, count(*) FILTER (was) AS was_positive,"  # noqa: S608
        " count(*) FILTER (now) AS now_positive, avg(abs(b - a)) AS mean_difference, max(abs(b - a)) AS most,"
        " avg(b - a) AS bias FROM pairs",
    )
    correlation = None
    # A model that gives every film the same probability has no ranks.
    if fetch_rows(connection, "SELECT min(a) < max(a) AND min(b) < max(b) AS ranked FROM pairs")[0]["ranked"]:
        (ranks,) = fetch_rows(
            connection,
            """
            SELECT corr(a_rank, b_rank) AS correlation FROM (
                SELECT rank() OVER (ORDER BY a) + (count(*) OVER (PARTITION BY a) - 1) / 2 AS a_rank,
                    rank() OVER (ORDER BY b) + (count(*) OVER (PARTITION BY b) - 1) / 2 AS b_rank
                FROM pairs)
            """,
        )
        correlation = ranks["correlation"]
    return {**totals, "correlation": correlation}


def _sites(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """The sites with most flips."""
    return fetch_rows(
        connection,
        f"SELECT site, count(*) OVER () AS sites, count(*) AS films, {_FLIPS}, avg(b - a) AS bias FROM pairs"  # noqa: S608
        " GROUP BY site ORDER BY to_positive + to_negative DESC, films DESC, site LIMIT ?",
        SITES_SHOWN,
    )


def _cells(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """Films by bin of both probabilities, 0 to BINS - 1, and how many of them flipped."""
    return fetch_rows(
        connection,
        "SELECT least(floor(a * $bins), $bins - 1)::INTEGER AS x, least(floor(b * $bins), $bins - 1)::INTEGER AS y,"
        " count(*) AS films, count(*) FILTER (was <> now) AS flips FROM pairs GROUP BY ALL ORDER BY x, y".replace(
            "$bins", str(BINS)
        ),
    )


def _most_different(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    return fetch_rows(
        connection,
        """
        SELECT uri, scores.site, study_date, a, b, was, now
        FROM (SELECT * FROM pairs ORDER BY abs(b - a) DESC, scan_id LIMIT ?) AS far
        JOIN (SELECT scan_id, any_value(uri) AS uri, any_value(site) AS site, any_value(study_date) AS study_date
              FROM scores WHERE scan_id IN (SELECT scan_id FROM pairs ORDER BY abs(b - a) DESC, scan_id LIMIT ?)
              GROUP BY scan_id) AS scores USING (scan_id)
        ORDER BY abs(b - a) DESC, scan_id
        """,
        FILMS_SHOWN,
        FILMS_SHOWN,
    )


def _points(connection: duckdb.DuckDBPyConnection, model: str) -> str:
    """The operating points of a model's calls; more than one if it was changed between runs."""
    rows = fetch_rows(
        connection,
        "SELECT DISTINCT operating_point FROM scores WHERE model_id = ? AND operating_point IS NOT NULL ORDER BY 1",
        model,
    )
    return ", ".join(row["operating_point"] for row in rows) or "not recorded"


def _histogram_chart(cells: Sequence[Mapping[str, Any]], a: str, b: str) -> Markup:
    most = max(cell["films"] for cell in cells)

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
        for cell in cells:
            flipped = cell["flips"] * 2 > cell["films"]
            # Logarithmic: most films lie in the corners, but the others are the interesting ones.
            strength = 0.3 + 0.7 * math.log(cell["films"]) / math.log(most) if most > 1 else 1.0
            look: dict[str, Any] = {"alpha": strength, "linewidth": 0}
            place = (cell["x"] / BINS, cell["y"] / BINS)
            axes.add_patch(Rectangle(place, 1 / BINS, 1 / BINS, color=VERMILION if flipped else BLUE, **look))
        axes.set(xlabel=f"Probability, A ({a[:8]})", ylabel=f"Probability, B ({b[:8]})", xlim=(0, 1), ylim=(0, 1))
        axes.set_aspect("equal")
        axes.text(0.03, 0.94, "positive by B only", fontsize=9, alpha=0.75)
        axes.text(0.97, 0.03, "positive by A only", fontsize=9, alpha=0.75, ha="right")

    return chart(
        paint, alt="Films by the probabilities of both models; those called differently are orange", height=4.0
    )
