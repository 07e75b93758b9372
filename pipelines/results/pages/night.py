"""The page of the scores: what the newest run did, what it left out and why, and what to do about it.

All figures are totals that DuckDB makes; no row of a scan leaves it.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, Final

import duckdb
from markupsafe import Markup
from matplotlib.axes import Axes

from pipelines.contracts import LABELS, STATUS_OF_REASON, Reason, Status
from pipelines.results.pages.charts import BLUE, INK, VERMILION, chart, legend_below
from pipelines.results.pages.model import plain
from pipelines.results.pages.page import DASH, render
from pipelines.results.query import open_scores
from pipelines.storage import Store, open_store

BINS: Final = 40
RUNS_SHOWN: Final = 30
SITES_SHOWN: Final = 20

ADVICE: Final[dict[Reason, str]] = {
    Reason.EMPTY_FILE: "The file has no bytes. Have the source send it again.",
    Reason.UNKNOWN_FORMAT: "Neither JPEG, PNG nor DICOM. Nothing to do unless it should have been a scan.",
    Reason.TRUNCATED: "The file ends too early, often a broken upload. Send it again; the next run scores it.",
    Reason.CORRUPT: "The bytes contradict their own format. Export the scan again at its source.",
    Reason.NO_PIXELS: "A DICOM object without a picture, such as a report. Nothing to do.",
    Reason.TOO_LARGE: "More pixels than a chest film has. Check the file; export it again at its ordinary size.",
    Reason.UNSUPPORTED: "A compression or pixel layout rayscan cannot decode. Export it as plain DICOM, JPEG or PNG.",
    Reason.CRASHED: "Decoding it ends the decoder. Export it again at its source, and report the file.",
    Reason.TIMED_OUT: "Decoding it does not end. Export the scan again at its source.",
    Reason.OUT_OF_MEMORY: "Decoding it takes more memory than a worker has. Check the file; export it again.",
    Reason.NOT_XRAY: "Its header names another modality than X-ray. Nothing to do in a mixed archive.",
    Reason.NOT_CHEST: "Its header names another part of the body. Nothing to do in a mixed archive.",
    Reason.NOT_FRONTAL: "A lateral or oblique view; the model knows frontal films only. Nothing to do.",
    Reason.BLANK: "Almost one grey level: no film is seen. Have a person look whether the exposure failed.",
    Reason.VANISHED: "It was listed, and gone when it was to be read. If it comes back, the next run scores it.",
    Reason.CHANGED: "It changed between listing and reading. The next run scores the new version.",
    Reason.ACCESS_DENIED: "The store refused to hand it out. Give the scoring role read access, then run again.",
    Reason.STORAGE_ERROR: "The store failed even after retries. Run again; if it stays, ask who runs the store.",
    Reason.WORKER_LOST: "Its worker died again and again, with no scan to blame. Look at its memory; run again.",
}
"""What a person does about each reason."""

_MEANINGS: Final = {
    Status.SCORED.value: "has a probability",
    Status.REJECTED.value: "readable, but not a film for this model",
    Status.UNREADABLE.value: "not a scan that can be decoded; reading it again will not help",
    Status.FAILED.value: "storage or machine failed; the next run tries again",
}


def night_page(uri: str) -> str:
    """HTML of the scores at a URI: the newest run in full, the others in a row each.

    Raises `InputError` when nothing was ever scored there.
    """
    store = open_store(uri)
    with closing(open_scores(uri)) as connection:
        (runs_total,) = _rows(connection, "SELECT count(*) AS n FROM runs")
        runs = _runs(connection)
        run = runs[0]
        record = _record(store, run)
        tally = _totals(connection, run["run_id"])
        statuses = {name: sum(row["scans"] for row in tally if row["status"] == name) for name in _MEANINGS}
        sites = _sites(connection, run["run_id"])
        threshold = _threshold(connection, run["run_id"])
        bins = _histogram(connection, run["run_id"])
        archive, rejects = _archive(connection, run["run_id"])
    point = record.get("operating_point") or "not recorded"
    rate = record.get("scans_per_second")
    resumed = record.get("resumed_shards")
    return render(
        "night.html",
        title=f"Night report: {run['date']}",
        run=run,
        runs=runs,
        more_runs=runs_total["n"] - len(runs),
        planned=run["planned"] or 0,
        done=sum(statuses.values()),
        statuses=statuses,
        meanings=_MEANINGS,
        positives=sum(row["positives"] for row in tally),
        listed_text="" if record.get("listed") is None else f"of {record['listed']:,} listed; the rest was done before",
        rate=f"{rate:,.1f}" if rate else DASH,
        rate_text="scans a second" + (f"; {resumed} shards were done by an earlier attempt" if resumed else ""),
        histogram=_histogram_chart(bins, threshold) if bins else None,
        histogram_text=_histogram_text(point, threshold),
        sites=sites,
        more_sites=sites[0]["sites"] - len(sites) if sites else 0,
        archive=archive,
        rejects=rejects,
        facts=_facts(record, run),
    )


def _rows(connection: duckdb.DuckDBPyConnection, sql: str, *params: Any) -> list[dict[str, Any]]:
    """A small result as dicts."""
    rows: list[dict[str, Any]] = connection.sql(sql, params=list(params)).to_arrow_table().to_pylist()
    return rows


def _runs(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """The newest runs, newest first, each with its called positives counted from the table."""
    return _rows(
        connection,
        """
        SELECT runs.*, coalesce(rows_scored, 0) AS rows_scored, coalesce(positives, 0) AS positives
        FROM (SELECT * FROM runs ORDER BY run_id DESC LIMIT ?) AS runs
        LEFT JOIN (
            SELECT run_id, count(*) FILTER (status = 'scored') AS rows_scored,
                count(*) FILTER (prediction = ?) AS positives
            FROM scores GROUP BY run_id
        ) USING (run_id)
        ORDER BY run_id DESC
        """,
        RUNS_SHOWN,
        LABELS[1],
    )


def _record(store: Store, run: Mapping[str, Any]) -> dict[str, Any]:
    """The run's own record, or its plan while it is unfinished."""
    name = "plan" if run["state"] == "unfinished" else "run"
    record: dict[str, Any] = json.loads(store.get(f"runs/{run['run_id']}/{name}.json"))
    return record


def _totals(connection: duckdb.DuckDBPyConnection, run_id: str) -> list[dict[str, Any]]:
    return _rows(
        connection,
        "SELECT status, count(*) AS scans, count(*) FILTER (prediction = ?) AS positives"
        " FROM scores WHERE run_id = ? GROUP BY status",
        LABELS[1],
        run_id,
    )


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


def _threshold(connection: duckdb.DuckDBPyConnection, run_id: str) -> tuple[float | None, float | None]:
    """The highest probability called negative and the lowest called positive; the operating point lies between."""
    (row,) = _rows(
        connection,
        "SELECT max(probability) FILTER (prediction = ?) AS below, min(probability) FILTER (prediction = ?) AS above"
        " FROM scores WHERE run_id = ?",
        *LABELS,
        run_id,
    )
    return row["below"], row["above"]


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


def _archive(connection: duckdb.DuckDBPyConnection, run_id: str) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Totals over the newest row of every scan, and those without a probability by reason, most first."""
    rows = _rows(
        connection,
        "SELECT status, reason, count(*) AS scans, count(*) FILTER (run_id = ?) AS of_run,"
        " count(*) FILTER (prediction = ?) AS positives FROM latest GROUP BY ALL ORDER BY scans DESC, reason",
        run_id,
        LABELS[1],
    )
    scored = sum(row["scans"] for row in rows if row["status"] == Status.SCORED)
    totals = {
        "scans": sum(row["scans"] for row in rows),
        "scored": scored,
        "positives": sum(row["positives"] for row in rows),
    }
    rejects = [
        {**row, "reason": row["reason"] or "not recorded", "advice": _advice(row["reason"])}
        for row in rows
        if row["status"] != Status.SCORED
    ]
    return totals, rejects


def _advice(reason: str | None) -> str:
    if reason in STATUS_OF_REASON:
        return ADVICE[Reason(reason)]
    return "This version of rayscan does not know this reason; look at the log of the run."


def _histogram_chart(bins: Sequence[Mapping[str, Any]], threshold: tuple[float | None, float | None]) -> Markup:
    negative, positive = [0] * BINS, [0] * BINS
    for row in bins:
        (positive if row["positive"] else negative)[row["bin"]] = row["scans"]
    edges = [index / BINS for index in range(BINS)]

    def paint(axes: Axes) -> None:
        look: dict[str, Any] = {"width": 1 / BINS, "align": "edge", "linewidth": 0}
        axes.bar(edges, negative, color=BLUE, label="called negative", **look)
        axes.bar(edges, positive, bottom=negative, color=VERMILION, label="called positive", **look)
        below, above = threshold
        if below is not None and above is not None:
            axes.axvline((below + above) / 2, color=INK, linewidth=1.2, linestyle="--", label="operating point")
        axes.set(xlabel="Probability of pneumonia", ylabel="Scans", xlim=(0, 1))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        legend_below(axes)

    return chart(paint, alt="Histogram of the probabilities of this run, by call", height=3.1)


def _histogram_text(point: str, threshold: tuple[float | None, float | None]) -> str:
    below, above = threshold
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
        "engine": "Engine",
        "layout": "Layout",
        "shards": "Shards",
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
