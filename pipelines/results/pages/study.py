"""The page of a study: how far the search came, which trials got there, and what it cost.

It reads `study.json` and `trials.parquet` by the contract (`contracts.TRIALS`), not through the search's own code.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup
from matplotlib.axes import Axes

from models.pages.charts import BLUE, GREY, INK, VERMILION, chart, legend_below, whole_numbers
from models.pages.page import plain
from pipelines.bundles import fetch_bundle
from pipelines.contracts import TRIALS
from pipelines.errors import InputError, NotFoundError
from pipelines.results.pages.page import render
from pipelines.storage import Store, open_store

_STATUSES: Final = ("complete", "pruned", "failed")
_NOT_PARAMETERS: Final = frozenset({"family", "baseline"})
"""Have their own column."""


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """A row of contracts.TRIALS, read for showing."""

    number: int
    status: str
    family: str
    baseline: bool
    auc: float | None
    epochs: int
    seconds: float
    parameters: str
    curve: list[tuple[int, float]]
    """(epoch, AUC)."""
    error: str | None
    finished_at: datetime

    @property
    def started_at(self) -> datetime:
        """As far as its own time tells."""
        return self.finished_at - timedelta(seconds=self.seconds)


def study_page(uri: str) -> str:
    """HTML of the study at a URI, finished or still going on.

    Raises `InputError` when its files cannot be understood, `BundleError` when its winner was changed.
    """
    store = open_store(uri)
    study = _study(store)
    trials = _trials(store)
    statuses = Counter(trial.status for trial in trials)
    ranked = sorted(
        (t for t in trials if t.auc is not None and t.status != "failed"), key=lambda t: (-_auc(t), t.number)
    )
    charts: dict[str, Markup] = {}
    if ranked:
        charts = {"by_number": _by_number(ranked), "by_time": _by_time(ranked), "curves": _curves(ranked)}
    ends = [trial.finished_at for trial in trials]
    starts = [trial.started_at for trial in trials]
    return render(
        "study.html",
        title="Study report",
        study=study,
        trials=trials,
        status_text=", ".join(f"{statuses[name]} {name}" for name in _STATUSES),
        ranked=ranked,
        unranked=[trial for trial in trials if trial not in ranked],
        best=ranked[0] if ranked else None,
        seconds=sum(trial.seconds for trial in trials),
        elapsed=(max(ends) - min(starts)).total_seconds() if trials else None,
        families=_families(ranked),
        winner=_winner(store),
        searched={
            "Dataset": study["dataset"],
            "Fingerprint": study.get("fingerprint", "not recorded"),
            **{f"Space: {name}": plain(value) for name, value in study.get("space", {}).items()},
            **{f"Setting: {name}": plain(value) for name, value in study.get("settings", {}).items()},
        },
        **charts,
    )


def _study(store: Store) -> dict[str, Any]:
    try:
        study = json.loads(store.get("study.json"))
    except ValueError as error:
        raise InputError(f"{store.uri('study.json')} is not JSON; a study of rayscan begins with it") from error
    if not isinstance(study, dict) or "dataset" not in study:
        raise InputError(f"{store.uri('study.json')} is not a study of this version of rayscan: it names no dataset")
    return study


def _trials(store: Store) -> list[_Trial]:
    """Every finished trial in the order of its number; none where the table is not there yet."""
    try:
        table = pq.read_table(pa.BufferReader(store.get("trials.parquet"))).select(TRIALS.names)
        # probes, heads on frozen features, are rows and no trials
        trials = [_trial(row) for row in table.to_pylist() if not json.loads(row["parameters"]).get("probe")]
    except NotFoundError:
        return []
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{store.uri('trials.parquet')} is not a table of trials of this version of rayscan: {error}"
        ) from error
    return sorted(trials, key=lambda trial: trial.number)


def _trial(row: dict[str, Any]) -> _Trial:
    parameters = json.loads(row["parameters"])
    auc = row["auc"]
    return _Trial(
        number=row["number"],
        status=row["status"],
        family=row["model"] or "not recorded",
        baseline=bool(parameters.get("baseline")),
        auc=auc if auc is not None and math.isfinite(auc) else None,
        epochs=row["epochs"],
        seconds=row["seconds"],
        parameters=plain({name: value for name, value in parameters.items() if name not in _NOT_PARAMETERS}),
        curve=[(epoch["epoch"], epoch["val_auc"]) for epoch in json.loads(row["history"])],
        error=row["error"],
        finished_at=row["finished_at"],
    )


def _winner(store: Store) -> dict[str, Any] | None:
    """The promoted bundle with its figures on the validation films, if there is one yet."""
    if not store.exists("best/bundle.json"):
        return None
    bundle = fetch_bundle(store.uri("best"))
    entry = bundle.evaluation.get("val")
    return entry and {"uri": store.uri("best"), "model_id": bundle.model_id, "metrics": entry["metrics"]}


def _families(ranked: Sequence[_Trial]) -> list[dict[str, Any]]:
    """One row a family, that of the best trial first."""
    rows = []
    for name in dict.fromkeys(trial.family for trial in ranked):
        members = [trial for trial in ranked if trial.family == name]
        aucs = [_auc(trial) for trial in members]
        seconds = sum(trial.seconds for trial in members)
        rows.append(
            {"name": name, "trials": len(members), "best": max(aucs), "median": median(aucs), "seconds": seconds}
        )
    return rows


def _by_number(ranked: Sequence[_Trial]) -> Markup:
    trials = sorted(ranked, key=lambda trial: trial.number)
    return _progress(trials, [trial.number for trial in trials], "Trial, in the order they began")


def _by_time(ranked: Sequence[_Trial]) -> Markup:
    trials = sorted(ranked, key=lambda trial: trial.finished_at)
    first = min(trial.started_at for trial in trials)
    minutes = [(trial.finished_at - first).total_seconds() / 60 for trial in trials]
    if minutes[-1] > 180:
        return _progress(trials, [value / 60 for value in minutes], "Hours since the first trial began")
    return _progress(trials, minutes, "Minutes since the first trial began")


def _progress(trials: Sequence[_Trial], places: Sequence[float], label: str) -> Markup:
    """Each trial's AUC and the best so far, trials in the order of their places on the x axis."""
    aucs = [_auc(trial) for trial in trials]
    best = [max(aucs[: index + 1]) for index in range(len(aucs))]
    floor = _floor(aucs)
    looks = (("complete", "o", BLUE, "full"), ("pruned", "o", GREY, "none"))

    def paint(axes: Axes) -> None:
        for status, marker, colour, fill in looks:
            seen = [
                (x, y)
                for x, y, trial in zip(places, aucs, trials, strict=True)
                if trial.status == status and y >= floor
            ]
            if seen:
                x, y = zip(*seen, strict=True)
                axes.plot(x, y, marker, color=colour, fillstyle=fill, markersize=5.5, label=status)
        for place, auc in zip(places, aucs, strict=True):
            if auc < floor:
                axes.plot(place, floor, "v", color=GREY, markersize=5, clip_on=False)
        axes.step(places, [max(value, floor) for value in best], where="post", color=VERMILION, label="best so far")
        _auc_axis(axes, floor, max(aucs))
        axes.set_xlabel(label)
        legend_below(axes)

    return chart(paint, alt=f"AUC of each trial; the best so far ends at {max(aucs):.4f}")


def _curves(ranked: Sequence[_Trial]) -> Markup:
    floor = _floor([_auc(trial) for trial in ranked])

    def paint(axes: Axes) -> None:
        labels = {"pruned": "stopped early", "complete": "complete"}
        for trial in reversed(ranked):
            if trial is ranked[0] or not trial.curve:
                continue
            look: dict[str, Any] = (
                {"color": BLUE, "alpha": 0.7} if trial.status == "complete" else {"color": GREY, "alpha": 0.35}
            )
            epochs, aucs = zip(*trial.curve, strict=True)
            if len(epochs) > 1:
                axes.plot(epochs, aucs, linewidth=1.2, label=labels.pop(trial.status, None), **look)
            else:
                axes.plot(epochs, aucs, ".", **look)
        if ranked[0].curve:
            epochs, aucs = zip(*ranked[0].curve, strict=True)
            axes.plot(epochs, aucs, "o-", color=VERMILION, markersize=4, label=f"best (trial {ranked[0].number})")
        _auc_axis(axes, floor, _auc(ranked[0]))
        axes.set_xlabel("Epoch")
        whole_numbers(axes.xaxis)
        legend_below(axes)

    return chart(paint, alt="AUC on the validation films by epoch, a line per trial")


def _auc_axis(axes: Axes, floor: float, top: float) -> None:
    """From the floor to a little above the best; at the very top a line for the perfect AUC."""
    axes.set_ylim(floor, top + 0.06 * (top - floor))
    axes.set_ylabel("AUC, validation films")
    if top + 0.06 * (top - floor) >= 1:
        axes.axhline(1, color=INK, linewidth=0.8)


def _floor(aucs: Sequence[float]) -> float:
    """Where the AUC axis begins: a few hopeless trials must not press all others into one line."""
    best, middle = max(aucs), median(aucs)
    return max(min(aucs), best - max(4 * (best - middle), 0.01)) - 0.002


def _auc(trial: _Trial) -> float:
    assert trial.auc is not None
    return trial.auc
