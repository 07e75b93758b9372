"""The page of a study: what the search reached at what cost, by which trials, and how certain that is.

It reads `study.json`, `trials.parquet` and, once the search has ended, `findings.json` (`tuning/study/findings.py`).
"""

import json
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
from tuning.study.records import StudyInfo, TrialRecord, count_statuses, leaderboard, on_perturbed, without_probes
from tuning.study.store import BEST, FINDINGS, read_study, read_trials
from tuning.training.objectives import AUC, LOG_SCORE

_SHOWN: Final = 20
"""Rows of the leaderboard that are shown; the rest is folded away."""
_MEND: Final = "remove it, or end the search again with --resume"
_NOTHING: Final[Mapping[str, Any]] = {
    "trials": {},
    "selection": None,
    "ensemble": None,
    "importance": None,
    "confirmed": [],
}


def study_page(uri: str, compare: str | None = None) -> str:
    """HTML of the study at a URI, finished or not; `compare` is the URI of another to set beside it.

    Raises `InputError` when its files cannot be understood, or the other study is of other films; `BundleError` when
    its winner was changed.
    """
    store = open_store(uri)
    study = read_study(store)
    trials = without_probes(read_trials(store))
    beside = None if compare is None else _beside(study, store, trials, open_store(compare))
    ranked = leaderboard(trials)
    with_result = {trial.trial_id for trial in ranked}
    ends = [trial.finished_at for trial in trials]
    starts = [trial.started_at for trial in trials]
    return render(
        "study.html",
        made=datetime.now(UTC),
        templates=Path(__file__).parent,
        title="Study report",
        study=study,
        trials=trials,
        status_text=", ".join(f"{count} {status}" for status, count in count_statuses(trials).items()),
        in_words=_in_words,
        measure=_measure(study),
        ranked=ranked,
        shown=_SHOWN,
        unranked=[trial for trial in trials if trial.trial_id not in with_result],
        best=ranked[0] if ranked else None,
        seconds=sum(trial.seconds for trial in trials),
        elapsed=(max(ends) - min(starts)).total_seconds() if trials else None,
        families=_families(ranked),
        **_winner(store),
        beside=beside,
        searched={
            "Dataset": study.dataset,
            "Fingerprint": study.fingerprint,
            **{f"Space: {name}": plain(value) for name, value in study.space.items()},
            **{f"Setting: {name}": plain(value) for name, value in study.settings.items()},
        },
        **_charts_and_findings(study, ranked, trials, _findings(store)),
    )


def _charts_and_findings(
    study: StudyInfo, ranked: Sequence[TrialRecord], trials: Sequence[TrialRecord], findings: Mapping[str, Any]
) -> dict[str, Any]:
    """What there is to show once a trial has a result."""
    if not ranked:
        return {}
    mattered, measure = findings["importance"], _measure(study)
    order = _mean_shares(mattered) if mattered else {}
    is_grid = study.settings.get("search") == "grid" or bool(study.space.get("grid"))
    return {
        "by_number": search_charts.by_number(ranked, measure),
        "by_cost": search_charts.by_cost(ranked, trials, _cores(study), measure),
        "curves": search_charts.curves(ranked, measure),
        "leaders": search_charts.leaders(ranked, findings["trials"]),
        "pareto": search_charts.pareto(ranked, measure),
        "judged": findings["trials"],
        "selection": findings["selection"],
        "ensemble": findings["ensemble"],
        "confirmed": findings["confirmed"],
        "members": {trial.trial_id: trial for trial in ranked},
        "mattered": mattered,
        "importance": search_charts.importance(mattered) if mattered else None,
        "parallel": space_charts.parallel(ranked, order, measure),
        "slices": space_charts.slices(ranked, order, measure),
        "grids": space_charts.grid_tables(ranked, measure) if is_grid else [],
    }


def _beside(study: StudyInfo, store: Store, trials: Sequence[TrialRecord], other: Store) -> Markup | None:
    """This search and another one of the same films, by what they cost; None where one has no result yet.

    By what both looked for; by AUC where that is not the same.
    """
    against = read_study(other)
    if against.fingerprint != study.fingerprint:
        raise InputError(f"{other.root} is a study of other films than {store.root}; their trials cannot be compared")
    same = study.objectives[0] == against.objectives[0]
    searches = {
        _name(store): _by_cost(trials, study, same),
        _name(other): _by_cost(without_probes(read_trials(other)), against, same),
    }
    if not all(searches.values()):
        return None
    return search_charts.beside(searches, _measure(study) if same else search_charts.AUC)


def _by_cost(trials: Sequence[TrialRecord], study: StudyInfo, by_objective: bool) -> list[tuple[float, float]]:
    """(core-minutes spent, value of the objective, or AUC) of each trial that has one, as they ended."""
    costs = search_charts.with_costs(trials, _cores(study))
    values = [(cost, trial.value if by_objective else trial.auc) for trial, cost in costs]
    return [(cost, value) for cost, value in values if value is not None]


def _name(store: Store) -> str:
    return store.root.rstrip("/").rpartition("/")[2]


def _measure(study: StudyInfo) -> str:
    """What the trials are ranked by, as a heading."""
    objective = study.objectives[0]
    return {AUC: search_charts.AUC, LOG_SCORE: "log score"}.get(objective, objective)


def _in_words(trial: TrialRecord) -> str:
    """Its parameters, but for the family, which has its own column."""
    return plain({name: value for name, value in trial.parameters.items() if name != "family"})


def _cores(study: StudyInfo) -> float:
    """Of one trial."""
    settings = study.settings
    cores: float = settings.get("cpus_per_trial", 1) * settings.get("workers_per_trial", 1)
    return cores


def _findings(store: Store) -> Mapping[str, Any]:
    """The study's findings; empty while the search is under way, and for a study of an earlier version."""
    try:
        findings = json.loads(store.get(FINDINGS))
    except NotFoundError:
        return _NOTHING
    except ValueError as error:
        raise InputError(f"{store.uri(FINDINGS)} is not JSON; {_MEND}") from error
    if not isinstance(findings, dict):
        raise InputError(f"{store.uri(FINDINGS)} is not a JSON object; {_MEND}")
    return {**_NOTHING, **findings}


def _mean_shares(mattered: Mapping[str, Any]) -> dict[str, float]:
    fanova, ped_anova = mattered["fanova"], mattered["ped_anova"]
    return {name: fanova.get(name, 0) + ped_anova.get(name, 0) for name in {**fanova, **ped_anova}}


def _winner(store: Store) -> dict[str, Any]:
    """`winner`, the promoted bundle with its figures on the validation films, and `perturbed`, those on copies."""
    entry: Mapping[str, Any] = {}
    if store.exists(f"{BEST}/bundle.json"):
        bundle = fetch_bundle(store.uri(BEST))
        entry = bundle.evaluation.get("val", {})
    if not entry:
        return {"winner": None, "perturbed": None}
    winner = {"uri": store.uri(BEST), "model_id": bundle.model_id, "trial": bundle.lineage.get("trial")}
    return {"winner": {**winner, "metrics": entry["metrics"]}, "perturbed": on_perturbed(entry)}


def _families(ranked: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """One row per family, that of the best trial first."""
    rows = []
    for name in dict.fromkeys(trial.model for trial in ranked):
        members = [trial for trial in ranked if trial.model == name]
        values = [trial.result for trial in members]
        seconds = sum(trial.seconds for trial in members)
        rows.append(
            {"name": name, "trials": len(members), "best": max(values), "median": median(values), "seconds": seconds}
        )
    return rows
