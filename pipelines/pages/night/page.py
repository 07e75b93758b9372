"""The page of the scores: what the newest run did, what it left out and why, and what to do about it.

`figures.py` asks the table; here the answers become a page. Where several models scored the archive, the page is about
the model of the newest run.
"""

import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Final

from markupsafe import Markup
from matplotlib.axes import Axes

from models.gate.checks import REFUSED
from pipelines.contracts import Status
from pipelines.pages.charts import BLUE, INK, VERMILION, chart, legend_below
from pipelines.pages.frame import DASH, plain, render
from pipelines.pages.night.drift import LEVEL_NAMES, QUANTITY_NAMES, read_findings, site_drift_table
from pipelines.pages.night.figures import BINS, CallBounds, NightFigures, read_figures
from pipelines.pages.night.history import Night, courses
from pipelines.pages.night.maps import MOST, with_maps
from pipelines.pages.night.todo import NightFacts, advice, tasks
from pipelines.pages.night.worklist import LENGTH, WorklistFilm, with_thumbnails
from pipelines.pages.page_file import check_thumbnails
from pipelines.storage import Store, open_store
from pipelines.table.drift import KS_LEVELS, MIN_FILMS, PSI_LEVELS, SHARE_LEVELS
from pipelines.table.query import read_scores
from pipelines.table.registry import Entry, read_entries, role_of

_MEANINGS: Final = {
    Status.SCORED.value: "has a probability",
    Status.REJECTED.value: "readable, but not a film for this model",
    Status.UNREADABLE.value: "cannot be decoded; reading it again will not help",
    Status.FAILED.value: "storage or a machine failed; the next run tries again",
}
_LIMITS: Final = {"psi": PSI_LEVELS, "ks": KS_LEVELS, "share": SHARE_LEVELS, "films": MIN_FILMS, "refused": REFUSED}


def night_page(uri: str, thumbnails: int = 0) -> str:
    """HTML of the scores at a URI: the newest run in full, the others in a row each.

    `thumbnails`: for how many films of the worklist a small picture is read from the archive and shown; the first of
    them also get the model's map.
    Raises `InputError` when nothing was ever scored there, or for thumbnails out of range.
    """
    check_thumbnails(thumbnails)
    store = open_store(uri)
    figures = read_scores(uri, lambda connection: read_figures(connection, max(LENGTH, thumbnails)))
    records = _records(store, figures.nights)
    record = records[figures.run["run_id"]]
    return render(
        "night/night.html",
        made=datetime.now(UTC),
        title=f"Night report: {figures.run['date']}",
        scores=store.root,
        meanings=_MEANINGS,
        courses=courses([_night(row, records[row["run_id"]]) for row in reversed(figures.nights)]),
        **_of_run(figures, record),
        **_of_drift(record),
        **_of_worklist(figures, record, thumbnails),
        **_of_table(figures),
        model=record.get("model"),
        facts=_facts(record, figures.run, role_of(read_entries(store), figures.run["model_id"])),
    )


def _of_run(figures: NightFigures, record: Mapping[str, Any]) -> dict[str, Any]:
    """The newest run: its tasks, counts, rate, sites and histogram."""
    run = figures.run
    statuses = {name: sum(figures.reasons.get(name, {}).values()) for name in _MEANINGS}
    facts = NightFacts(
        planned=run["planned"] or 0,
        statuses=statuses,
        positives=run["positives"],
        reasons=figures.reasons,
        findings=read_findings(record),
        record=record,
        finished=run["state"] == "finished",
    )
    rate, resumed = record.get("scans_per_second"), record.get("resumed_shards")
    point = record.get("operating_point") or "not recorded"
    threshold = _threshold(record, figures.bounds)
    return {
        "run": run,
        "tasks": tasks(facts),
        "planned": facts.planned,
        "done": sum(statuses.values()),
        "statuses": statuses,
        "positives": facts.positives,
        "listed_text": _listed_text(facts.planned, record.get("listed")),
        "rate": f"{rate:,.1f}" if rate else DASH,
        "rate_text": "scans a second" + (f"; {resumed} shards were scored by an earlier attempt" if resumed else ""),
        "histogram": _histogram_chart(figures.bins, threshold) if figures.bins else None,
        "histogram_text": _histogram_text(point, figures.bounds),
        "sites": figures.sites,
        "more_sites": figures.sites[0]["sites"] - len(figures.sites) if figures.sites else 0,
    }


def _of_drift(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "drift": site_drift_table(read_findings(record)),
        "level_names": LEVEL_NAMES,
        "quantity_names": QUANTITY_NAMES,
        "limits": _LIMITS,
    }


def _of_worklist(figures: NightFigures, record: Mapping[str, Any], thumbnails: int) -> dict[str, Any]:
    films, maps_text = _with_pictures(figures.films, thumbnails, record, figures.run["model_id"])
    return {"films": films, "thumbnails": thumbnails, "maps_text": maps_text}


def _of_table(figures: NightFigures) -> dict[str, Any]:
    """The whole table: the archive as it stands, other models, other runs."""
    rejects = [
        {**row, "reason": row["reason"] or "not recorded", "advice": advice(row["reason"])} for row in figures.rejects
    ]
    return {
        "archive": figures.archive,
        "rejects": rejects,
        "others": figures.others,
        "runs": figures.runs,
        "more_runs": figures.runs_total - len(figures.runs),
    }


def _with_pictures(
    films: Sequence[WorklistFilm], thumbnails: int, record: Mapping[str, Any], model_id: str
) -> tuple[list[WorklistFilm], str]:
    """The films of the worklist, the first with thumbnails and maps, and the page's sentence about the maps."""
    shown = with_thumbnails(films[:thumbnails])
    mapped, maps_text = with_maps(shown[:MOST], record.get("bundle"), model_id) if shown else ([], "")
    return [*mapped, *shown[MOST:], *films[thumbnails:]], maps_text


def _listed_text(planned: int, listed: int | None) -> str:
    if listed is None:
        return ""
    return "all that were listed" if planned == listed else f"of {listed:,} listed; the rest were scored before"


def _records(store: Store, runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The record of each of these runs by its id; the plan of a run that is unfinished."""
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


def _threshold(record: Mapping[str, Any], bounds: CallBounds) -> float | None:
    """The operating point's threshold: as recorded, else half-way between the calls (runs of earlier versions)."""
    if record.get("threshold") is not None:
        return float(record["threshold"])
    below, above = bounds
    return None if below is None or above is None else (below + above) / 2


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


def _histogram_text(point: str, bounds: CallBounds) -> str:
    below, above = bounds
    if below is None or above is None:
        return f"Operating point {point}; all scans were called the same."
    return (
        f"Operating point {point}: the highest probability called negative is {below:.4g}, "
        f"the lowest called positive {above:.4g}."
    )


def _facts(record: Mapping[str, Any], run: Mapping[str, Any], named: Entry | None) -> dict[str, str]:
    names = {
        "bundle": "Bundle",
        "operating_point": "Operating point",
        "threshold": "Its threshold",
        "engine": "Engine",
        "layout": "Layout",
        "shards": "Shards",
        "lost_workers": "Shards restarted",
        "given_up": "Scans given up",
        "stage_seconds": "Seconds by stage, all actors",
        "finished": "Finished",
        "plan_hash": "Hash of the plan",
        "versions": "Versions",
    }
    facts = {label: plain(record[name]) for name, label in names.items() if record.get(name) is not None}
    if record.get("bytes"):
        facts["Bytes read"] = f"{record['bytes'] / 1e9:,.2f} GB"
    if record.get("conditional_put") is False:
        facts["Store"] = "has no conditional put: parts were written by plain puts of fixed names"
    role = {"Role of the model": f"{named.role}: {named.name}, since {named.at:%Y-%m-%d}"} if named else {}
    return {"Run": run["run_id"], "State": run["state"], **role, **facts}
