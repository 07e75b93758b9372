"""The search: Ray Tune runs the trials, Optuna suggests them, ASHA stops the poor ones, the winner becomes a bundle.

The driver writes `STUDY/trials.parquet` as each trial ends, and each trial its whole state after each epoch; so a
killed driver or node loses only the epoch under way. `Tuner.restore` was refused: it unpickles files from storage.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import ray
from ray import tune

from models.spec import Scalar
from pipelines.bundles import cache_folder
from pipelines.capacity import cluster_capacity
from pipelines.ingest.dataset import DatasetInfo
from pipelines.storage import Store, open_store
from tuning.search.confirm_on_ray import as_ray_tasks
from tuning.search.group_trial import DRIVER, Group, run_group_trial
from tuning.search.known_trials import best_of, final_trials, usual_trials
from tuning.search.mirror import Mirror
from tuning.search.pace import cores_per_trial
from tuning.search.probes import best_probes, run_probes
from tuning.search.room import room_for
from tuning.search.rounds import run_round
from tuning.search.settings import FINAL_SHARE, PROBE_SHARE, SearchSettings
from tuning.search.setup import SearchSetup, read_films
from tuning.search.space import check_space, space_of
from tuning.search.trial import TrialJob, run_trial
from tuning.spaces.space import SearchSpace
from tuning.study.confirm import Dealt, confirm, deal_train
from tuning.study.findings import add_confirmed, conclude
from tuning.study.records import (
    StudyInfo,
    StudySummary,
    TrialRecord,
    count_statuses,
    front_of,
    leaderboard,
    on_perturbed,
    without_probes,
)
from tuning.study.store import BEST, begin_study, remove_stale_checkpoints
from tuning.study.winner import promote_best
from tuning.training.objectives import LATENCY, latency_limit, parse_objectives


def search(
    dataset_uri: str,
    out: str,
    settings: SearchSettings,
    *,
    space: SearchSpace | None = None,
    optuna_storage: str | None = None,
) -> StudySummary:
    """Search models on a dataset's train and val films; write the study to `out`, the best model to `out`/best.

    Ray must be running, and every node must reach `out`: the trials put their weights there. The test films are never
    read. `optuna_storage` is where people look at the trials with optuna-dashboard (`tuning/search/mirror.py`); its URL
    may hold a password, so the study does not keep it. Ctrl-C, the time budget and `settings.patience` end the search
    as its last trial does: trials under way are recorded with the best they reached, and the best of all is promoted.

    Raises `InputError` where `out` holds anything and `settings.resume` is off, where the study to resume is of other
    films or another space, and where the cluster is too small for one trial; `RayscanError` where every trial failed,
    `IncompleteError` where the search ended before any trial had a result.
    """
    began = time.monotonic()
    films = read_films(dataset_uri)
    space = space_of(settings, films.info) if space is None else space
    check_space(space, settings, films.info)
    warm = [] if settings.warm_start is None else best_of(settings.warm_start, space, films.info.fingerprint)
    capacity = cluster_capacity()
    settings = replace(settings, cpus_per_trial=cores_per_trial(settings, space, films, capacity))
    room = room_for(settings, capacity)
    dealt = None
    if settings.confirm:
        dealt = deal_train(films.train, films.val, films.info, films.uri, seed=settings.seed + 1)
    store = open_store(out)
    study = StudyInfo(
        dataset=films.uri, fingerprint=films.info.fingerprint, space=space.to_json(), settings=asdict(settings)
    )
    with _mirrored(optuna_storage, store, space, settings, films.info) as mirror:
        setup = SearchSetup(store=store, films=films, settings=settings, space=space, room=room, mirror=mirror)
        earlier = begin_study(store, study, resume=settings.resume)
        records = _run_rounds(setup, earlier, warm, began)
    ran = len(without_probes(records)) - len(without_probes(earlier))
    return _conclude(setup, study, records, dealt, ran=ran, began=began)


def _run_rounds(
    setup: SearchSetup, earlier: Sequence[TrialRecord], warm: Sequence[Mapping[str, Scalar]], began: float
) -> list[TrialRecord]:
    """The probes, the trials, and the finals; every row the study has then. `warm` points are tried first."""
    settings, space, films = setup.settings, setup.space, setup.films
    budget = math.inf if settings.time_budget_s is None else settings.time_budget_s
    known, points = list(earlier), list(warm)
    if settings.probes:
        known += run_probes(
            space,
            known,
            films,
            probes=settings.probes,
            store=setup.store,
            seed=settings.seed,
            deadline=began + PROBE_SHARE * budget,
            at_a_time=setup.room.cores,
        )
        points = [*best_probes(known, space), *points]
    if setup.mirror is not None:
        setup.mirror.add_missing(known)
    trainable = _trainable(setup)
    for_finals = FINAL_SHARE if settings.finals else 0.0
    points += usual_trials(space)
    records, interrupted = run_round(setup, trainable, known, points=points, deadline=began + (1 - for_finals) * budget)
    if settings.finals and not interrupted:
        finals = final_trials(records, films.info.size, settings.finals)
        records, _ = run_round(setup, trainable, records, finals=finals, deadline=began + budget)
    return records


def _conclude(
    setup: SearchSetup, study: StudyInfo, records: Sequence[TrialRecord], dealt: Dealt | None, *, ran: int, began: float
) -> StudySummary:
    """Put the findings and the winner's bundle; with films dealt to folds, confirm the best trials on them."""
    store, films, settings = setup.store, setup.films, setup.settings
    trials = without_probes(records)
    findings = conclude(store, trials, study, dataset=films.info, val=films.val, select=settings.select)
    record, bundle = promote_best(
        store,
        records,
        study,
        dataset=films.info,
        train=films.train,
        val=films.val,
        select=settings.select,
        intended_use=settings.intended_use,
        show_films=settings.show_films,
        optimism=findings.selection,
    )
    assert record.auc is not None  # the leaderboard holds only trials with a result
    if dealt is not None:
        best = [trial for trial in leaderboard(records) if trial.kind != "baseline"][: settings.confirm]
        in_tasks = as_ray_tasks(setup.room.each, at_most=setup.room.trials * settings.workers_per_trial)
        confirmed = confirm(store, best, dealt, run=in_tasks, known=findings.confirmed)
        findings = add_confirmed(store, findings, confirmed)
    remove_stale_checkpoints(store, records)  # of workers that were stopped and had one more to put
    return StudySummary(
        study=store.root,
        trials=count_statuses(trials),
        ran=ran,
        best_trial=record.trial_id,
        best_number=record.number,
        model=record.model,
        parameters=record.parameters,
        auc=record.auc,
        **findings.in_short(),
        auc_perturbed=on_perturbed(bundle.evaluation["val"]),
        bundle=store.uri(BEST),
        model_id=bundle.model_id,
        seconds=time.monotonic() - began,
        objective=record.objective,
        front=tuple(trial.number for trial in front_of(trials)) if LATENCY in settings.objectives else (),
        probes=len(records) - len(trials),
    )


@contextmanager
def _mirrored(
    storage: str | None, store: Store, space: SearchSpace, settings: SearchSettings, info: DatasetInfo
) -> Iterator[Mirror | None]:
    """The copy of the study that people look at, if they asked for one."""
    if storage is None:
        yield None
        return
    mirror = Mirror(storage, f"{store.root} {info.fingerprint}", settings.objectives, space)
    try:
        yield mirror
    finally:
        mirror.close()


def _trainable(setup: SearchSetup) -> Any:
    """What Ray Tune runs for each trial: the training in the trial's own process, or a group of workers."""
    films, settings, resources = setup.films, setup.settings, dict(setup.room.each)
    job = TrialJob(
        study=setup.store,
        preprocessing=films.info.preprocessing,
        epochs=settings.epochs,
        seed=settings.seed,
        threads=int(resources["CPU"]),
        device="cuda" if resources.get("GPU") else "cpu",
        gpu_share=min(resources.get("GPU") or 1.0, 1.0),
        features=str(cache_folder("features")),
        objective=parse_objectives(settings.objectives)[0].name,
        latency=LATENCY in settings.objectives,
        most_ms=latency_limit(settings.objectives),
    )
    if settings.workers_per_trial == 1:
        trainable = tune.with_parameters(run_trial, films=films, job=job)
        return tune.with_resources(trainable, resources)
    group = Group(
        workers=settings.workers_per_trial, cpus=resources["CPU"], gpus=resources.get("GPU", 0.0), films=ray.put(films)
    )
    return tune.with_resources(tune.with_parameters(run_group_trial, group=group, job=job), DRIVER)
