"""The page of the scores: what the newest run did, what it left out and why, and what to do about it.

All figures are totals that DuckDB makes, whatever the number of scans; of single films only those of the worklist leave
it. Where several models scored the archive, the page is about the model of the newest run.
"""

import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import duckdb
from markupsafe import Markup
from matplotlib.axes import Axes

from pipelines.contracts import LABELS, Status
from pipelines.pages.charts import BLUE, INK, VERMILION, chart, legend_below
from pipelines.pages.frame import DASH, plain, render
from pipelines.pages.night.drift import LEVEL_NAMES, QUANTITY_NAMES, read_findings, site_drift_table
from pipelines.pages.night.history import Night, courses
from pipelines.pages.night.maps import MOST, with_maps
from pipelines.pages.night.todo import NightFacts, advice, tasks
from pipelines.pages.night.worklist import LENGTH, WorklistFilm, check_thumbnails, with_thumbnails, worklist
from pipelines.storage import Store, open_store
from pipelines.table.drift import KS_LEVELS, MIN_FILMS, PSI_LEVELS, SHARE_LEVELS
from pipelines.table.query import read_scores
from pipelines.table.record import NIGHTS
from pipelines.table.views import NEWEST

BINS: Final = 40
RUNS_SHOWN: Final = 30
SITES_SHOWN: Final = 20

_MEANINGS: Final = {
    Status.SCORED.value: "has a probability",
    Status.REJECTED.value: "readable, but not a film for this model",
    Status.UNREADABLE.value: "not a scan that can be decoded; reading it again will not help",
    Status.FAILED.value: "storage or machine failed; the next run tries again",
}


def night_page(uri: str, thumbnails: int = 0) -> str:
    """HTML of the scores at a URI: the newest run in full, the others in a row each.

    `thumbnails`: of how many films of the worklist a small picture is read from the archive and put on the page; the
    first of them get the model's map, too.
    Raises `InputError` when nothing was ever scored there, or for thumbnails out of range.
    """
    check_thumbnails(thumbnails)
    store = open_store(uri)
    asked = read_scores(uri, lambda connection: _ask(connection, max(LENGTH, thumbnails)))
    run, runs, bounds, archive = asked.run, asked.runs, asked.bounds, asked.archive
    records = _records(store, asked.nights)
    record, reasons = records[run["run_id"]], asked.reasons
    statuses = {name: sum(reasons.get(name, {}).values()) for name in _MEANINGS}
    positives = run["positives"]
    findings = read_findings(record)
    facts = NightFacts(
        planned=run["planned"] or 0,
        statuses=statuses,
        positives=positives,
        reasons=reasons,
        findings=findings,
        record=record,
        finished=run["state"] == "finished",
    )
    point = record.get("operating_point") or "not recorded"
    films, of_maps = _with_pictures(asked.films, thumbnails, record, run["model_id"])
    rate = record.get("scans_per_second")
    resumed = record.get("resumed_shards")
    return render(
        "night/night.html",
        made=datetime.now(UTC),
        title=f"Night report: {run['date']}",
        scores=store.root,
        run=run,
        runs=runs,
        more_runs=asked.runs_total - len(runs),
        planned=facts.planned,
        done=sum(statuses.values()),
        statuses=statuses,
        meanings=_MEANINGS,
        positives=positives,
        tasks=tasks(facts),
        courses=courses([_night(row, records[row["run_id"]]) for row in reversed(asked.nights)]),
        drift=site_drift_table(findings),
        level_names=LEVEL_NAMES,
        quantity_names=QUANTITY_NAMES,
        limits={"psi": PSI_LEVELS, "ks": KS_LEVELS, "share": SHARE_LEVELS, "films": MIN_FILMS},
        films=films,
        thumbnails=thumbnails,
        of_maps=of_maps,
        others=asked.others,
        listed_text=_listed_text(facts.planned, record.get("listed")),
        rate=f"{rate:,.1f}" if rate else DASH,
        rate_text="scans a second" + (f"; {resumed} shards were done by an earlier attempt" if resumed else ""),
        histogram=_histogram_chart(asked.bins, _threshold(record, bounds)) if asked.bins else None,
        histogram_text=_histogram_text(point, bounds),
        sites=asked.sites,
        more_sites=asked.sites[0]["sites"] - len(asked.sites) if asked.sites else 0,
        archive=archive,
        rejects=asked.rejects,
        facts=_facts(record, run),
    )


def _with_pictures(
    films: Sequence[WorklistFilm], thumbnails: int, record: Mapping[str, Any], model_id: str
) -> tuple[list[WorklistFilm], str]:
    """The films of the worklist, the first with thumbnails and maps, and what is to be said of the maps."""
    shown = with_thumbnails(films[:thumbnails])
    mapped, of_maps = with_maps(shown[:MOST], record.get("bundle"), model_id) if shown else ([], "")
    return [*mapped, *shown[MOST:], *films[thumbnails:]], of_maps


def _listed_text(planned: int, listed: int | None) -> str:
    if listed is None:
        return ""
    return "all that were listed" if planned == listed else f"of {listed:,} listed; the rest was done before"


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """What the table says; rows as `_rows` makes them."""

    run: dict[str, Any]
    """The newest, of any model."""
    runs: list[dict[str, Any]]
    runs_total: int
    nights: list[dict[str, Any]]
    """The newest runs of the model of `run`."""
    reasons: dict[str, dict[str, int]]
    sites: list[dict[str, Any]]
    bounds: tuple[float | None, float | None]
    bins: list[dict[str, Any]]
    archive: dict[str, int]
    rejects: list[dict[str, Any]]
    films: list[WorklistFilm]
    others: list[dict[str, Any]]


def _ask(connection: duckdb.DuckDBPyConnection, films: int) -> _Answers:
    _add_run_totals(connection)
    runs = _runs(connection, RUNS_SHOWN)
    run = runs[0]
    others = _other_models(connection, run["model_id"])
    archive, rejects = _archive(connection, run, alone=not others)
    return _Answers(
        run=run,
        runs=runs,
        runs_total=_rows(connection, "SELECT count(*) AS n FROM runs")[0]["n"],
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


def _rows(connection: duckdb.DuckDBPyConnection, sql: str, *params: Any) -> list[dict[str, Any]]:
    """A small result as dicts."""
    rows: list[dict[str, Any]] = connection.sql(sql, params=list(params)).to_arrow_table().to_pylist()
    return rows


def _add_run_totals(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the small table `run_totals`, counted from the rows: one pass for all runs."""
    connection.execute(
        "CREATE TEMP TABLE run_totals AS SELECT run_id, count(*) AS row_count,"
        " count(*) FILTER (status = 'scored') AS rows_scored,"
        " count(*) FILTER (status IN ('rejected', 'unreadable')) AS rows_left_out,"
        " count(*) FILTER (prediction = ?) AS positives FROM scores GROUP BY run_id",
        [LABELS[1]],
    )


def _runs(connection: duckdb.DuckDBPyConnection, most: int, model_id: str | None = None) -> list[dict[str, Any]]:
    """The newest runs (of one model), newest first, each with its totals counted from the rows."""
    return _rows(
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


def _records(store: Store, runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each of these runs its own record, or its plan while it is unfinished."""
    keys = [f"runs/{row['run_id']}/{'plan' if row['state'] == 'unfinished' else 'run'}.json" for row in runs]
    with ThreadPoolExecutor(8) as threads:
        records = [json.loads(data) for data in threads.map(store.get, keys)]
    return {row["run_id"]: record for row, record in zip(runs, records, strict=True)}


def _night(row: Mapping[str, Any], record: Mapping[str, Any]) -> Night:
    rate = record.get("scans_per_second") if row["planned"] else None
    return Night(
        date=str(row["date"]),
        scans=row["row_count"],
        scored=row["rows_scored"],
        positives=row["positives"],
        left_out=row["rows_left_out"],
        rate=rate if rate and math.isfinite(rate) else None,
    )


def _reasons(connection: duckdb.DuckDBPyConnection, run_id: str) -> dict[str, dict[str, int]]:
    """Rows of a run by status and reason; the scored ones have the reason ``."""
    found: dict[str, dict[str, int]] = {}
    for row in _rows(
        connection,
        "SELECT status, coalesce(reason, '') AS reason, count(*) AS scans FROM scores WHERE run_id = ? GROUP BY ALL"
        " ORDER BY status, reason",
        run_id,
    ):
        found.setdefault(row["status"], {})[row["reason"]] = row["scans"]
    return found


def _sites(connection: duckdb.DuckDBPyConnection, run_id: str) -> list[dict[str, Any]]:
    return _rows(
        connection,
        "SELECT site, count(*) OVER () AS sites, count(*) AS scans, count(*) FILTER (status = 'scored') AS scored,"
        " count(*) FILTER (prediction = ?) AS positives"
        " FROM scores WHERE run_id = ? GROUP BY site ORDER BY scans DESC, site LIMIT ?",
        LABELS[1],
        run_id,
        SITES_SHOWN,
    )


def _bounds(connection: duckdb.DuckDBPyConnection, run_id: str) -> tuple[float | None, float | None]:
    """The highest probability called negative and the lowest called positive; the operating point lies between."""
    (row,) = _rows(
        connection,
        "SELECT max(probability) FILTER (prediction = ?) AS below, min(probability) FILTER (prediction = ?) AS above"
        " FROM scores WHERE run_id = ?",
        *LABELS,
        run_id,
    )
    return row["below"], row["above"]


def _threshold(record: Mapping[str, Any], bounds: tuple[float | None, float | None]) -> float | None:
    """Of the operating point: as recorded, or between the calls of a run of an earlier version."""
    if record.get("threshold") is not None:
        return float(record["threshold"])
    below, above = bounds
    return None if below is None or above is None else (below + above) / 2


def _histogram(connection: duckdb.DuckDBPyConnection, run_id: str) -> list[dict[str, Any]]:
    """Scans by bin of probability and by call: bin 0 to BINS - 1."""
    return _rows(
        connection,
        "SELECT least(floor(probability * ?), ?)::INTEGER AS bin, coalesce(prediction = ?, false) AS positive,"
        " count(*) AS scans FROM scores WHERE run_id = ? AND probability BETWEEN 0 AND 1 GROUP BY ALL",
        BINS,
        BINS - 1,
        LABELS[1],
        run_id,
    )


def _archive(
    connection: duckdb.DuckDBPyConnection, run: Mapping[str, Any], *, alone: bool
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Totals over this model's newest row of every file, and those without a probability by reason, most first.

    `alone`: no other model scored here, so that these are the rows of the view `latest`, which is quicker.
    """
    newest = f"QUALIFY row_number() OVER (PARTITION BY uri ORDER BY {NEWEST}) = 1"
    rows = _rows(
        connection,
        "SELECT status, reason, count(*) AS scans, count(*) FILTER (run_id = ?) AS of_run,"  # noqa: S608 (constants)
        " count(*) FILTER (prediction = ?) AS positives FROM (SELECT status, reason, run_id, prediction FROM"
        f" {'latest' if alone else 'scores'} WHERE model_id = ? {'' if alone else newest})"
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
    rejects = [
        {**row, "reason": row["reason"] or "not recorded", "advice": advice(row["reason"])}
        for row in rows
        if row["status"] != Status.SCORED
    ]
    return totals, rejects


def _other_models(connection: duckdb.DuckDBPyConnection, model_id: str) -> list[dict[str, Any]]:
    """Models that scored here too, that of the newest run first."""
    return _rows(
        connection,
        "SELECT model_id, count(*) AS runs, max(date) AS date FROM runs WHERE model_id <> ?"
        " GROUP BY model_id ORDER BY max(run_id) DESC LIMIT ?",
        model_id,
        RUNS_SHOWN,
    )


def _histogram_chart(bins: Sequence[Mapping[str, Any]], threshold: float | None) -> Markup:
    negative, positive = [0] * BINS, [0] * BINS
    for row in bins:
        (positive if row["positive"] else negative)[row["bin"]] = row["scans"]
    edges = [index / BINS for index in range(BINS)]

    def paint(axes: Axes) -> None:
        look: dict[str, Any] = {"width": 1 / BINS, "align": "edge", "linewidth": 0}
        axes.bar(edges, negative, color=BLUE, label="called negative", **look)
        axes.bar(edges, positive, bottom=negative, color=VERMILION, label="called positive", **look)
        if threshold is not None:
            axes.axvline(threshold, color=INK, linewidth=1.2, linestyle="--", label="operating point")
        axes.set(xlabel="Probability of pneumonia", ylabel="Scans", xlim=(0, 1))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        legend_below(axes)

    return chart(paint, alt="Histogram of the probabilities of this run, by call", height=3.1)


def _histogram_text(point: str, bounds: tuple[float | None, float | None]) -> str:
    below, above = bounds
    if below is None or above is None:
        return f"Operating point {point}; all scans were called alike."
    return (
        f"Operating point {point}: the highest probability called negative is {below:.4g}, "
        f"the lowest called positive {above:.4g}."
    )


def _facts(record: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, str]:
    names = {
        "bundle": "Bundle",
        "operating_point": "Operating point",
        "threshold": "Its threshold",
        "engine": "Engine",
        "layout": "Layout",
        "shards": "Shards",
        "lost_workers": "Shards begun again",
        "given_up": "Scans given up",
        "stage_seconds": "Seconds by stage, all actors",
        "finished": "Finished",
        "plan_hash": "Hash of the plan",
        "versions": "Versions",
    }
    told = {label: plain(record[name]) for name, label in names.items() if record.get(name) is not None}
    if record.get("bytes"):
        told["Bytes read"] = f"{record['bytes'] / 1e9:,.2f} GB"
    if record.get("conditional_put") is False:
        told["Store"] = "has no conditional put: parts were written by plain puts of fixed names"
    return {"Run": run["run_id"], "State": run["state"], **told}
