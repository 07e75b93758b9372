"""What a study shows beyond its best trial, put as `STUDY/findings.json` when a search ends.

How certain the leaderboard is, how optimistic the choice, what an ensemble of trials would gain and cost, and which
parameters mattered. All of it comes from what the trials left: no model is trained, and only the networks of the
ensemble are run, to measure what they cost. The results of trials that are trained anew (`tuning/study/confirm.py`)
are added later. The recipes of the best trials are put at `STUDY/recipes/`.

An ensemble is reported and not promoted: its members see films of different sizes, where a bundle has one size, one
network and one graph.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.films import Films
from models.intended_use import IntendedUse
from models.statistics.bootstrap import count_patients
from models.statistics.calibration import disease_log_odds
from models.statistics.comparison import delong_test, holm
from models.statistics.metrics import auc_interval
from pipelines.errors import NotFoundError
from pipelines.ingest.dataset import DatasetInfo
from pipelines.storage import Store
from tuning.recipes.choices import Select
from tuning.recipes.recipe import to_toml
from tuning.recipes.selection import TOP
from tuning.study.confirm import Confirmed, recipe_of
from tuning.study.ensemble import POOL, Gain, estimate_gain, greedy, mean, weights
from tuning.study.importance import Importance, importance
from tuning.study.optimism import LEAST_PATIENTS, Optimism, estimate
from tuning.study.records import StudyInfo, TrialRecord, leaderboard
from tuning.study.store import FINDINGS, RECIPES
from tuning.study.trial_files import load_logits
from tuning.study.winner import logits_of
from tuning.training.judged_films import originals
from tuning.training.objectives import AUC, parse_objective

log = logging.getLogger("rayscan")

MOST: Final = 200
"""Trials at the top of the leaderboard that are examined; one further down is hardly the best on any half of the
films."""
KEPT_RECIPES: Final = 3
TIMED_FILMS: Final = 64
TIMED_RUNS: Final = 3
"""The fastest counts."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """How certain one trial's place on the leaderboard is."""

    auc: Mapping[str, float]
    """value, low, high: DeLong's 95 % interval, which takes no account of the choice."""
    p_value: float | None
    """Of its difference to the best trial, by DeLong's paired test over patients, raised for the number of trials
    (Holm); None for the best itself."""
    chosen: float | None
    """On which share of the halves of the patients it is the best; None where there are too few to halve."""


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """The greedy ensemble of the study's trials."""

    members: Mapping[str, float]
    """trial_id -> weight, the heaviest first."""
    auc: Mapping[str, float]
    """On the films that chose it, so too high: value, low, high."""
    gain: Gain | None
    """On films that did not choose it; None where there are too few patients to halve."""
    milliseconds: float
    """Per film, all members one after another: float32 torch, on the CPU and threads of one trial."""
    single_milliseconds: float
    """The same of the best trial alone."""

    @property
    def cost(self) -> float:
        """How many times as slow as the best trial alone."""
        return self.milliseconds / self.single_milliseconds


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a study shows beyond its best trial."""

    trials: Mapping[str, Judged]
    """By trial_id, of those on the leaderboard that left their predictions."""
    selection: Optimism | None
    ensemble: Ensemble | None
    """None with fewer than two trials, or where the best alone is as good on the films that chose them."""
    importance: Importance | None
    confirmed: Sequence[Confirmed] = ()
    """Trials that were trained anew over folds; the last run's first."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self) | {"selection": self.selection and self.selection.to_json()}

    def in_short(self) -> dict[str, Any]:
        """`auc_elsewhere`, `ensemble` and `confirmed` of a `StudySummary`."""
        return {
            "auc_elsewhere": self.selection and self.selection.elsewhere,
            "ensemble": self._ensemble_in_short(),
            "confirmed": [trial.in_short() for trial in self.confirmed],
        }

    def _ensemble_in_short(self) -> dict[str, float] | None:
        if self.ensemble is None or self.ensemble.gain is None:
            return None
        difference = self.ensemble.gain.test.difference
        return {
            "gain": difference.value,
            "low": difference.low,
            "high": difference.high,
            "cost": self.ensemble.cost,
            "members": len(self.ensemble.members),
        }


def conclude(
    store: Store,
    records: Sequence[TrialRecord],
    study: StudyInfo,
    *,
    dataset: DatasetInfo,
    val: Films,
    select: Select = "auc",
) -> Findings:
    """Compute the findings and put them at `STUDY/findings.json`.

    `val` are the films the trials were judged on, in their order. What was confirmed in earlier runs stays.
    """
    began = time.perf_counter()
    _keep_recipes(store, leaderboard(records)[:KEPT_RECIPES], study, dataset)
    ranked, logits = _predictions(store, leaderboard(records)[:MOST], len(val))
    findings = Findings(trials={}, selection=None, ensemble=None, importance=importance(records))
    if ranked:
        findings = _judge(findings, ranked, logits, val, select, store, study, dataset)
    findings = replace(findings, confirmed=_confirmed_earlier(store))
    _put(store, findings)
    log.info("%s; it took %.1f s to find out", _in_words(findings), time.perf_counter() - began)
    return findings


def add_confirmed(store: Store, findings: Findings, confirmed: Sequence[Confirmed]) -> Findings:
    """The findings with trials that were trained anew, put at `STUDY/findings.json`."""
    new = {trial.trial_id for trial in confirmed}
    earlier = [trial for trial in findings.confirmed if trial.trial_id not in new]
    findings = replace(findings, confirmed=[*confirmed, *earlier])
    _put(store, findings)
    for trial in confirmed:
        if trial.auc is None:
            log.warning("trial %d cannot be confirmed: %s", trial.number, trial.error)
        else:
            log.info(
                "trial %d: AUC %.4f in the search, %.4f on patients held out (SD %.4f over %d folds)",
                *(trial.number, trial.search_auc, trial.auc["mean"], trial.auc["sd"], trial.folds),
            )
    return findings


def _put(store: Store, findings: Findings) -> None:
    store.put(FINDINGS, json.dumps(findings.to_json(), indent=1, allow_nan=False).encode())


def _confirmed_earlier(store: Store) -> list[Confirmed]:
    if not store.exists(FINDINGS):
        return []
    try:
        return [Confirmed(**trial) for trial in json.loads(store.get(FINDINGS)).get("confirmed", [])]
    except (ValueError, TypeError, AttributeError) as error:
        log.warning("%s is not of this version of rayscan (%s); it is replaced", store.uri(FINDINGS), error)
        return []


def _keep_recipes(store: Store, ranked: Sequence[TrialRecord], study: StudyInfo, dataset: DatasetInfo) -> None:
    """Put the trials' recipes, for `train --recipe` and `crossvalidate --recipe`."""
    for record in ranked:
        recipe = recipe_of(
            record.parameters,
            preprocessing=dataset.preprocessing,
            epochs=study.epochs,
            seed=record.seed,
            objective=study.objectives[0],
            about=f"Trial {record.number} of a search: validation AUC {record.auc:.4f}, by which it was chosen.",
        )
        stated = IntendedUse.from_json({k: v for k, v in (study.settings.get("intended_use") or {}).items() if v})
        named = replace(recipe, name=f"trial {record.number}", intended_use=stated)
        store.put(f"{RECIPES}/{record.number}.toml", to_toml(named).encode())


def _judge(
    findings: Findings,
    ranked: Sequence[TrialRecord],
    logits: Sequence[npt.NDArray[np.float32]],
    val: Films,
    select: Select,
    store: Store,
    study: StudyInfo,
    dataset: DatasetInfo,
) -> Findings:
    """The findings with what the ranked trials' predictions show."""
    disease = (val.labels != 0).astype(np.int64)
    objective = parse_objective(study.objectives[0])
    of = originals(val.labels, copies=objective.copies and min(map(len, logits)) > len(val))
    judged = np.array([disease_log_odds(own[: len(of)]) for own in logits], dtype=np.float64)
    judge = None if objective.name == AUC else objective.judge
    top = 1 if select == "auc" else TOP
    estimated = estimate(disease, val.patients, judged, judge=judge, originals=of, top=top)
    odds = judged[:, : len(val)]
    selection, chosen = estimated or (None, [None] * len(ranked))
    worse: Sequence[float | None] = [None] * len(ranked)
    if min(count_patients(disease, val.patients)) >= 2:
        worse = holm([delong_test(disease, own, odds[0], val.patients).p_value for own in odds[1:]])
    trials = {
        record.trial_id: Judged(
            auc=asdict(auc_interval(disease, own)),
            p_value=None if place == 0 else worse[place - 1],
            chosen=None if share is None else float(share),
        )
        for place, (record, own, share) in enumerate(zip(ranked, odds, chosen, strict=True))
    }
    ensemble = _ensemble(ranked, np.exp(-np.logaddexp(0, -odds)), disease, val, store, study, dataset)
    return replace(findings, trials=trials, selection=selection, ensemble=ensemble)


def _predictions(
    store: Store, ranked: Sequence[TrialRecord], films: int
) -> tuple[list[TrialRecord], list[npt.NDArray[np.float32]]]:
    """The trials that left predictions of so many films, and these; those of earlier versions left none."""
    kept: list[TrialRecord] = []
    logits: list[npt.NDArray[np.float32]] = []
    for record in ranked:
        try:
            own = load_logits(store, record.trial_id)
        except NotFoundError:
            continue
        if len(own) >= films:
            kept.append(record)
            logits.append(own)
    if len(kept) < len(ranked):
        log.warning("%d of the %d best trials left no predictions to judge", len(ranked) - len(kept), len(ranked))
    return kept, logits


def _ensemble(
    ranked: Sequence[TrialRecord],
    probability: npt.NDArray[np.float64],
    disease: npt.NDArray[np.int64],
    val: Films,
    store: Store,
    study: StudyInfo,
    dataset: DatasetInfo,
) -> Ensemble | None:
    members = greedy(disease, probability)
    if len(set(members)) < 2:
        return None
    milliseconds = {trial: _milliseconds(store, ranked[trial], study, dataset, val) for trial in dict.fromkeys(members)}
    return Ensemble(
        members={ranked[trial].trial_id: share for trial, share in weights(members).items()},
        auc=asdict(auc_interval(disease, mean(probability, members))),
        gain=estimate_gain(disease, val.patients, probability[: 4 * POOL]),
        milliseconds=sum(milliseconds.values()),
        single_milliseconds=milliseconds[members[0]],
    )


def _milliseconds(store: Store, record: TrialRecord, study: StudyInfo, dataset: DatasetInfo, val: Films) -> float:
    """Per film, by the trial's network, preprocessing included."""
    logits = logits_of(store, record, study, dataset)
    pixels = val.pixels[:TIMED_FILMS]
    times = []
    for _ in range(1 + TIMED_RUNS):  # the first is a warm-up
        began = time.perf_counter()
        logits(pixels)
        times.append(time.perf_counter() - began)
    return 1000 * min(times) / len(pixels)


def _in_words(findings: Findings) -> str:
    if not findings.trials:
        return "no trial left predictions to judge"
    if findings.selection is None:
        return (
            f"fewer than {LEAST_PATIENTS} patients with or without disease: how optimistic the choice is, is not known"
        )
    expected = (
        f"AUC {findings.selection.auc:.4f} was chosen among {findings.selection.trials}; on other films expect"
        f" {findings.selection.elsewhere:.4f}"
    )
    if findings.ensemble is None or findings.ensemble.gain is None:
        return expected
    difference = findings.ensemble.gain.test.difference
    return (
        f"{expected}; an ensemble of {len(findings.ensemble.members)} would gain {difference.value:+.4f}"
        f" ({difference.low:+.4f} to {difference.high:+.4f}) at {findings.ensemble.cost:.1f} times the cost"
    )
