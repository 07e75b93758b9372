"""What the page of a night asks of the scores: totals counted by DuckDB, whatever the number of scans.

Of single films only those of the worklist leave the database.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import duckdb

from pipelines.contracts import LABELS, Status
from pipelines.pages.night.worklist import WorklistFilm, worklist
from pipelines.table.query import fetch_rows
from pipelines.table.record import NIGHTS

BINS: Final = 40
RUNS_SHOWN: Final = 30
SITES_SHOWN: Final = 20

CallBounds = tuple[float | None, float | None]
"""The highest probability called negative and the lowest called positive; the operating point lies between."""


@dataclass(frozen=True, kw_only=True)
class NightFigures:
    """The answers; each dict is one row of a result."""

    run: dict[str, Any]
    """The newest run, of any model."""
    runs: list[dict[str, Any]]
    runs_total: int
    nights: list[dict[str, Any]]
    """The newest runs of the model of `run`, newest first."""
    reasons: dict[str, dict[str, int]]
    """Status -> reason -> rows of `run`; scored rows have the reason ``."""
    sites: list[dict[str, Any]]
    bounds: CallBounds
    bins: list[dict[str, Any]]
    archive: dict[str, int]
    rejects: list[dict[str, Any]]
    """Rows without a probability, by reason, most first."""
    films: list[WorklistFilm]
    others: list[dict[str, Any]]


def read_figures(connection: duckdb.DuckDBPyConnection, films: int) -> NightFigures:
    """Ask everything the page shows, with a worklist of at most `films` films."""
    _add_run_totals(connection)
    runs = _runs(connection, RUNS_SHOWN)
    run = runs[0]
    others = _other_models(connection, run["model_id"])
    archive, rejects = _archive(connection, run)
    return NightFigures(
        run=run,
        runs=runs,
        runs_total=fetch_rows(connection, "SELECT count(*) AS n FROM runs")[0]["n"],
        nights=_runs(connection, NIGHTS, run["model_id"]),
        reasons=_reasons(connection, run["run_id"]),
        sites=_sites(connection, run["run_id"]),
        bounds=_bounds(connection, run["run_id"]),
        bins=_histogram(connection, run["run_id"]),
        archive=archive,
        rejects=rejects,
        films=worklist(connection, run["run_id"], films),
        others=others,
    )


def _add_run_totals(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the small table `run_totals`, counted from the rows in one pass for all runs."""
    connection.execute(
        "CREATE TEMP TABLE run_totals AS SELECT run_id, count(*) AS row_count,"
        " count(*) FILTER (status = 'scored') AS rows_scored,"
        " count(*) FILTER (status IN ('rejected', 'unreadable')) AS rows_left_out,"
        " count(*) FILTER (prediction = ?) AS positives FROM scores WHERE status <> 'removed' GROUP BY run_id",
        [LABELS[1]],
    )


def _runs(connection: duckdb.DuckDBPyConnection, most: int, model_id: str | None = None) -> list[dict[str, Any]]:
    """The newest runs (of one model), newest first, each with its totals counted from the rows."""
    return fetch_rows(
        connection,
        """
        SELECT runs.*, coalesce(row_count, 0) AS row_count, coalesce(rows_scored, 0) AS rows_scored,
            coalesce(rows_left_out, 0) AS rows_left_out, coalesce(positives, 0) AS positives
        FROM runs LEFT JOIN run_totals USING (run_id)
        WHERE model_id = coalesce(?, model_id) ORDER BY run_id DESC LIMIT ?
        """,
        model_id,
        most,
    )


def _reasons(connection: duckdb.DuckDBPyConnection, run_id: str) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for row in fetch_rows(
        connection,
        "SELECT status, coalesce(reason, '') AS reason, count(*) AS scans FROM scores WHERE run_id = ? GROUP BY ALL"
        " ORDER BY status, reason",
        run_id,
    ):
        counts.setdefault(row["status"], {})[row["reason"]] = row["scans"]
    return counts


def _sites(connection: duckdb.DuckDBPyConnection, run_id: str) -> list[dict[str, Any]]:
    return fetch_rows(
        connection,
        "SELECT site, count(*) OVER () AS sites, count(*) AS scans, count(*) FILTER (status = 'scored') AS scored,"
        " count(*) FILTER (prediction = ?) AS positives"
        " FROM scores WHERE run_id = ? AND status <> 'removed' GROUP BY site ORDER BY scans DESC, site LIMIT ?",
        LABELS[1],
        run_id,
        SITES_SHOWN,
    )


def _bounds(connection: duckdb.DuckDBPyConnection, run_id: str) -> CallBounds:
    (row,) = fetch_rows(
        connection,
        "SELECT max(probability) FILTER (prediction = ?) AS below, min(probability) FILTER (prediction = ?) AS above"
        " FROM scores WHERE run_id = ?",
        *LABELS,
        run_id,
    )
    return row["below"], row["above"]


def _histogram(connection: duckdb.DuckDBPyConnection, run_id: str) -> list[dict[str, Any]]:
    """Scans by bin of probability and by call: bin 0 to BINS - 1."""
    return fetch_rows(
        connection,
        "SELECT least(floor(probability * ?), ?)::INTEGER AS bin, coalesce(prediction = ?, false) AS positive,"
        " count(*) AS scans FROM scores WHERE run_id = ? AND status = 'scored' GROUP BY ALL",
        BINS,
        BINS - 1,
        LABELS[1],
        run_id,
    )


def _archive(
    connection: duckdb.DuckDBPyConnection, run: Mapping[str, Any]
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Totals over this model's newest row of every file, and its rows without a probability by reason, most first."""
    rows = fetch_rows(
        connection,
        "SELECT status, reason, count(*) AS scans, count(*) FILTER (run_id = ?) AS of_run,"
        " count(*) FILTER (prediction = ?) AS positives FROM latest WHERE model_id = ?"
        " GROUP BY ALL ORDER BY scans DESC, reason",
        run["run_id"],
        LABELS[1],
        run["model_id"],
    )
    scored = sum(row["scans"] for row in rows if row["status"] == Status.SCORED)
    totals = {
        "scans": sum(row["scans"] for row in rows),
        "scored": scored,
        "positives": sum(row["positives"] for row in rows),
    }
    return totals, [row for row in rows if row["status"] != Status.SCORED]


def _other_models(connection: duckdb.DuckDBPyConnection, model_id: str) -> list[dict[str, Any]]:
    """The other models that scored here, the one with the newest run first."""
    return fetch_rows(
        connection,
        "SELECT model_id, count(*) AS runs, max(date) AS date FROM runs WHERE model_id <> ?"
        " GROUP BY model_id ORDER BY max(run_id) DESC LIMIT ?",
        model_id,
        RUNS_SHOWN,
    )
