"""The search: Ray Tune runs the trials, Optuna suggests them, ASHA stops the poor ones, the winner becomes a bundle.

The driver writes `STUDY/trials.parquet` as each trial ends, and each trial its whole state after each epoch; so a
killed driver or node loses the epoch under way. `Tuner.restore` was refused: it unpickles what lies on storage.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import ray
from ray import tune

from models.errors import InputError
from models.films import Films
from pipelines.bundles import cache_folder
from pipelines.ingest.dataset import DatasetInfo, load_films, read_dataset_info
from pipelines.storage import Store, open_store
from tuning.search.confirm_on_ray import as_ray_tasks
from tuning.search.group_trial import DRIVER, Group, run_group_trial
from tuning.search.known_trials import best_of, final_trials
from tuning.search.mirror import Mirror
from tuning.search.probes import best_probes, run_probes
from tuning.search.rounds import run_round
from tuning.search.settings import FINAL_SHARE, PROBE_SHARE, SearchSettings
from tuning.search.space import check_space, space_of
from tuning.search.trial import TrialJob, run_trial
from tuning.spaces.space import SearchSpace
from tuning.study.confirm import confirm, deal_train
from tuning.study.findings import add_confirmed, conclude
from tuning.study.records import (
    StudyInfo,
    StudySummary,
    TrialRecord,
    count_statuses,
    front_of,
    leaderboard,
    without_probes,
)
from tuning.study.store import BEST, begin_study, remove_stale_checkpoints
from tuning.study.winner import promote_best
from tuning.training.objectives import LATENCY, parse_objectives


def search(
    dataset_uri: str,
    out: str,
    settings: SearchSettings,
    *,
    space: SearchSpace | None = None,
    optuna_storage: str | None = None,
) -> StudySummary:
    """Search models on a dataset's train and val films; write the study to `out`, the best model to `out`/best.

    Ray must be up, and every node must reach `out`: the trials put their weights there. The test films are never read.
    `optuna_storage` is where people look at the trials with optuna-dashboard (`tuning/search/mirror.py`); its URL may
    hold a password, so the study does not keep it. Ctrl-C, the time budget and `settings.patience` end the search as
    its last trial does: trials under way are recorded with the best they reached, and the best of all is promoted.

    Raises `InputError` where `out` holds anything and `settings.resume` is off, where the study to resume is of other
    films or another space, and where the cluster is too small for one trial; `RayscanError` where every trial failed,
    `IncompleteError` where the search ended before any trial had a result.
    """
    began = time.monotonic()
    films = _read_films(dataset_uri)
    space = space_of(settings, films.info) if space is None else space
    check_space(space, settings, films.info)
    points = [] if settings.warm_start is None else best_of(settings.warm_start, space, films.info.fingerprint)
    resources, concurrent = _resources(settings)
    dealt = None
    if settings.confirm:
        dealt = deal_train(films.train, films.val, films.info, films.uri, seed=settings.seed + 1)
    store = open_store(out)
    study = StudyInfo(
        dataset=films.uri, fingerprint=films.info.fingerprint, space=space.to_json(), settings=asdict(settings)
    )
    with _mirrored(optuna_storage, store, space, settings, films.info) as mirror:
        earlier = begin_study(store, study, resume=settings.resume)
        budget = math.inf if settings.time_budget_s is None else settings.time_budget_s
        if settings.probes:
            earlier += _probe(films, space, earlier, settings, store, deadline=began + PROBE_SHARE * budget)
            points = [*best_probes(earlier, space), *points]
        if mirror is not None:
            mirror.add_missing(earlier)
        search_round = partial(
            run_round,
            _trainable(films, _job(films, settings, store, resources), resources, settings.workers_per_trial),
            store,
            settings=settings,
            space=space,
            resources=resources,
            concurrent=concurrent,
            mirror=mirror,
        )
        kept = FINAL_SHARE if settings.finals else 0.0
        points += space.usual()
        records, interrupted = search_round(earlier, points=points, deadline=began + (1 - kept) * budget)
        if settings.finals and not interrupted:
            finals = final_trials(records, films.info.size, settings.finals)
            records, _ = search_round(records, finals=finals, deadline=began + budget)
    trials = without_probes(records)
    found = conclude(store, trials, study, dataset=films.info, val=films.val, select=settings.select)
    record, bundle = promote_best(
        store,
        records,
        study,
        dataset=films.info,
        train=films.train,
        val=films.val,
        select=settings.select,
        show_films=settings.show_films,
        optimism=found.selection,
    )
    assert record.auc is not None  # the leaderboard holds only trials with a result
    if dealt is not None:
        best = [one for one in leaderboard(records) if one.kind != "baseline"][: settings.confirm]
        confirmed = confirm(store, best, dealt, run=as_ray_tasks(resources), known=found.confirmed)
        found = add_confirmed(store, found, confirmed)
    remove_stale_checkpoints(store, records)  # of workers that were stopped and had one more to put
    return StudySummary(
        study=store.root,
        trials=count_statuses(trials),
        ran=len(trials) - len(without_probes(earlier)),
        best_trial=record.trial_id,
        best_number=record.number,
        model=record.model,
        parameters=record.parameters,
        auc=record.auc,
        **found.in_short(),
        bundle=store.uri(BEST),
        model_id=bundle.model_id,
        seconds=time.monotonic() - began,
        objective=record.objective,
        front=tuple(one.number for one in front_of(trials)) if LATENCY in settings.objectives else (),
        probes=len(records) - len(trials),
    )


@dataclass(frozen=True, kw_only=True)
class _FilmsOf:
    """What a search is of."""

    uri: str
    info: DatasetInfo
    train: Films
    val: Films


def _read_films(uri: str) -> _FilmsOf:
    uri = open_store(uri).root  # workers stand in another folder
    info = read_dataset_info(uri)
    return _FilmsOf(uri=uri, info=info, train=load_films(uri, "train"), val=load_films(uri, "val"))


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


def _probe(
    films: _FilmsOf,
    space: SearchSpace,
    earlier: Sequence[TrialRecord],
    settings: SearchSettings,
    store: Store,
    *,
    deadline: float,
) -> list[TrialRecord]:
    return run_probes(
        space,
        earlier,
        probes=settings.probes,
        store=store,
        dataset=films.uri,
        preprocessing=films.info.preprocessing,
        train=films.train,
        val=films.val,
        seed=settings.seed,
        deadline=deadline,
    )


def _job(films: _FilmsOf, settings: SearchSettings, store: Store, resources: Mapping[str, float]) -> TrialJob:
    return TrialJob(
        study=store,
        preprocessing=films.info.preprocessing,
        epochs=settings.epochs,
        seed=settings.seed,
        threads=settings.cpus_per_trial,
        device="cuda" if resources.get("GPU") else "cpu",
        dataset=films.uri,
        features=str(cache_folder("features")),
        objective=parse_objectives(settings.objectives)[0].name,
        latency=LATENCY in settings.objectives,
    )


def _resources(settings: SearchSettings) -> tuple[dict[str, float], int]:
    """What each worker of a trial gets, and how many trials the cluster holds at a time."""
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus = settings.gpus_per_trial
    if gpus is None:
        gpus = 1.0 if have.get("GPU", 0) >= 1 else 0.0
    each = {"CPU": float(settings.cpus_per_trial)} | ({"GPU": gpus} if gpus else {})
    needed = {name: settings.workers_per_trial * amount for name, amount in each.items()}
    fitting = min(int(have.get(name, 0) / amount) for name, amount in needed.items())
    if fitting < 1 and settings.max_concurrent is None:
        raise InputError(
            f"one trial needs {needed}, but the cluster has {have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs"
            "; lower --cpus-per-trial or --gpus-per-trial, or give --concurrent to wait for an autoscaler"
        )
    return each, settings.max_concurrent or fitting


def _trainable(films: _FilmsOf, job: TrialJob, resources: dict[str, float], workers: int) -> Any:
    if workers == 1:
        return tune.with_resources(
            tune.with_parameters(run_trial, train=films.train, val=films.val, job=job), resources
        )
    both = ray.put((films.train, films.val))
    group = Group(workers=workers, cpus=resources["CPU"], gpus=resources.get("GPU", 0.0), films=both)
    return tune.with_resources(tune.with_parameters(run_group_trial, group=group, job=job), DRIVER)
