"""The page of a study: how far the search came and what it cost, which trials got there, and how sure that is.

It reads `study.json`, `trials.parquet` (`contracts.TRIALS`) and, once the search has ended, `findings.json`
(`tuning/study/findings.py`), not through the search's own code.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final

from markupsafe import Markup

from pipelines.bundles import fetch_bundle
from pipelines.errors import InputError, NotFoundError
from pipelines.pages.frame import plain, render
from pipelines.storage import Store, open_store
from tuning.study.pages import search_charts, space_charts
from tuning.study.pages.trials import Trial, read_trials

_STATUSES: Final = ("complete", "pruned", "failed")
_SHOWN: Final = 20
"""Rows of the leaderboard before the rest, which is folded away."""
_NOTHING: Final[Mapping[str, Any]] = {
    "trials": {},
    "selection": None,
    "ensemble": None,
    "importance": None,
    "confirmed": [],
}


def study_page(uri: str, compare: str | None = None) -> str:
    """HTML of the study at a URI, finished or still going on; `compare` is the URI of another to set beside it.

    Raises `InputError` when its files cannot be understood, or the other study is of other films; `BundleError` when
    its winner was changed.
    """
    store = open_store(uri)
    study = _study(store)
    trials = read_trials(store)
    beside = None if compare is None else _beside(study, store, trials, open_store(compare))
    statuses = Counter(trial.status for trial in trials)
    ranked = sorted(
        (t for t in trials if t.auc is not None and t.status != "failed"), key=lambda t: (-t.value, t.number)
    )
    ends = [trial.finished_at for trial in trials]
    starts = [trial.started_at for trial in trials]
    return render(
        "study.html",
        made=datetime.now(UTC),
        templates=Path(__file__).parent,
        title="Study report",
        study=study,
        trials=trials,
        status_text=", ".join(f"{statuses[name]} {name}" for name in _STATUSES),
        ranked=ranked,
        shown=_SHOWN,
        unranked=[trial for trial in trials if trial not in ranked],
        best=ranked[0] if ranked else None,
        seconds=sum(trial.seconds for trial in trials),
        elapsed=(max(ends) - min(starts)).total_seconds() if trials else None,
        families=_families(ranked),
        winner=_winner(store),
        beside=beside,
        searched={
            "Dataset": study["dataset"],
            "Fingerprint": study.get("fingerprint", "not recorded"),
            **{f"Space: {name}": plain(value) for name, value in study.get("space", {}).items()},
            **{f"Setting: {name}": plain(value) for name, value in study.get("settings", {}).items()},
        },
        **_told(study, ranked, trials, _findings(store)),
    )


def _told(
    study: Mapping[str, Any], ranked: Sequence[Trial], trials: Sequence[Trial], found: Mapping[str, Any]
) -> dict[str, Any]:
    """What there is to say once a trial has a result: charts, and what was found out."""
    if not ranked:
        return {}
    mattered = found["importance"]
    order = _mean_shares(mattered) if mattered else {}
    settings, space = study.get("settings", {}), study.get("space", {})
    is_grid = settings.get("search") == "grid" or bool(space.get("grid"))
    return {
        "by_number": search_charts.by_number(ranked),
        "by_cost": search_charts.by_cost(ranked, trials, _cores(study)),
        "curves": search_charts.curves(ranked),
        "leaders": search_charts.leaders(ranked, found["trials"]),
        "pareto": search_charts.pareto(ranked),
        "judged": found["trials"],
        "selection": found["selection"],
        "ensemble": found["ensemble"],
        "confirmed": found["confirmed"],
        "members": {trial.trial_id: trial for trial in ranked},
        "mattered": mattered,
        "importance": search_charts.importance(mattered) if mattered else None,
        "parallel": space_charts.parallel(ranked, order),
        "slices": space_charts.slices(ranked, order),
        "grids": space_charts.grid_tables(ranked) if is_grid else [],
    }


def _beside(study: Mapping[str, Any], store: Store, trials: Sequence[Trial], other: Store) -> Markup | None:
    """This search and another one of the same films, by what they cost; None where one has no result yet."""
    against = _study(other)
    if against.get("fingerprint") != study.get("fingerprint"):
        raise InputError(f"{other.root} is a study of other films than {store.root}; their AUCs cannot be compared")
    searches = {
        _name(of): [(cost, trial.auc) for trial, cost in search_charts.with_costs(found, _cores(info)) if trial.auc]
        for of, info, found in ((store, study, trials), (other, against, read_trials(other)))
    }
    return search_charts.beside(searches) if all(searches.values()) else None


def _name(store: Store) -> str:
    return store.root.rstrip("/").rpartition("/")[2]


def _cores(study: Mapping[str, Any]) -> float:
    """Of one trial."""
    settings = study.get("settings", {})
    cores: float = settings.get("cpus_per_trial", 1) * settings.get("workers_per_trial", 1)
    return cores


def _study(store: Store) -> dict[str, Any]:
    study = _read(store, "study.json", "a study of rayscan begins with it")
    if "dataset" not in study:
        raise InputError(f"{store.uri('study.json')} is not a study of this version of rayscan: it names no dataset")
    return study


def _findings(store: Store) -> Mapping[str, Any]:
    """What `tuning/study/findings.py` put; nothing while the search goes on, or of an earlier version."""
    try:
        return {**_NOTHING, **_read(store, "findings.json", "remove it, or end the search again with --resume")}
    except NotFoundError:
        return _NOTHING


def _read(store: Store, key: str, mend: str) -> dict[str, Any]:
    try:
        value = json.loads(store.get(key))
    except ValueError as error:
        raise InputError(f"{store.uri(key)} is not JSON; {mend}") from error
    if not isinstance(value, dict):
        raise InputError(f"{store.uri(key)} is not a JSON object; {mend}")
    return value


def _mean_shares(mattered: Mapping[str, Any]) -> dict[str, float]:
    fanova, ped_anova = mattered["fanova"], mattered["ped_anova"]
    return {name: fanova.get(name, 0) + ped_anova.get(name, 0) for name in {**fanova, **ped_anova}}


def _winner(store: Store) -> dict[str, Any] | None:
    """The promoted bundle with its figures on the validation films, if there is one yet."""
    if not store.exists("best/bundle.json"):
        return None
    bundle = fetch_bundle(store.uri("best"))
    entry = bundle.evaluation.get("val")
    found = {"uri": store.uri("best"), "model_id": bundle.model_id, "trial": bundle.lineage.get("trial")}
    return entry and {**found, "metrics": entry["metrics"]}


def _families(ranked: Sequence[Trial]) -> list[dict[str, Any]]:
    """One row a family, that of the best trial first."""
    rows = []
    for name in dict.fromkeys(trial.family for trial in ranked):
        members = [trial for trial in ranked if trial.family == name]
        aucs = [trial.value for trial in members]
        seconds = sum(trial.seconds for trial in members)
        rows.append(
            {"name": name, "trials": len(members), "best": max(aucs), "median": median(aucs), "seconds": seconds}
        )
    return rows
