"""The search: Ray Tune runs the trials, Optuna suggests them, ASHA stops the poor ones, the winner becomes a bundle.

The driver writes `STUDY/trials.parquet` as each trial ends, and each trial its whole state after each epoch; so a
killed driver or node loses the epoch under way. `Tuner.restore` was refused: it unpickles what lies on storage.
"""

import logging
import math
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from models.errors import InputError
from models.films import Films
from models.spec import ModelSpec, Scalar
from pipelines.bundles import cache_folder
from pipelines.ingest.dataset import DatasetInfo, load_films, read_dataset_info
from pipelines.storage import Store, open_store
from tuning.board import board
from tuning.confirm import confirm, deal_train
from tuning.confirm_on_ray import as_ray_tasks
from tuning.findings import add_confirmed, conclude
from tuning.group_trial import DRIVER, Group, run_group_trial
from tuning.known_trials import best_of, final_trials
from tuning.ledger import Converged, Ledger, has_converged
from tuning.mirror import Mirror
from tuning.objectives import LATENCY, parse_objectives
from tuning.probes import best_probes, run_probes
from tuning.scheduler import FamilyScheduler, Past
from tuning.search_settings import FINAL_SHARE, PROBE_SHARE, SearchSettings
from tuning.space import BASELINE, FINAL, PROBE, SearchSpace, leaves
from tuning.space_file import DEFAULT, GRID, space_for
from tuning.start import seeded_network
from tuning.study import (
    BEST,
    StartedTrial,
    StudyInfo,
    StudySummary,
    TrialRecord,
    begin_study,
    count_statuses,
    leaderboard,
    load_checkpoint,
    next_number,
    promote_best,
    remove_stale_checkpoints,
    study_front,
    unfinished_trials,
    without_probes,
)
from tuning.suggestions import suggestions
from tuning.trial import OBJECTIVE, TIME, TrialJob, run_trial

log = logging.getLogger("rayscan")

_QUIET: Final = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
RETRIES: Final = 2
"""Times a trial is tried again whose process died or raised what the machine may be at fault for; a node that is taken
away with notice does not count."""


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
    `optuna_storage` is where people look at the trials with optuna-dashboard (`tuning/mirror.py`); its URL may hold a
    password, so the study does not keep it.
    Ctrl-C, the time budget and `settings.patience` end the search as its last trial does: trials under way are recorded
    with the best they reached, and the best of all is promoted.

    Raises `InputError` where `out` holds anything and `settings.resume` is off, where the study to resume is of other
    films or another space, and where the cluster is too small for one trial; `RayscanError` where every trial failed,
    `IncompleteError` where the search ended before any trial had a result.
    """
    began = time.monotonic()
    info = read_dataset_info(dataset_uri)
    if space is None:
        space = space_for(
            info.size,
            source=settings.space or (GRID if settings.search == "grid" else DEFAULT),
            families=settings.families,
            resolutions=settings.resolutions,
            weights=settings.weights,
        )
    if settings.search == "grid":
        leaves(space)  # refuses a space that is not discrete, before anything is written
    _check_weights(space, info)
    points = [] if settings.warm_start is None else best_of(settings.warm_start, space, info.fingerprint)
    train, val = load_films(dataset_uri, "train"), load_films(dataset_uri, "val")
    resources, concurrent = _resources(settings)
    dealt = deal_train(train, val, info, dataset_uri, seed=settings.seed + 1) if settings.confirm else None
    store = open_store(out)
    study = StudyInfo(
        dataset=dataset_uri, fingerprint=info.fingerprint, space=space.to_json(), settings=asdict(settings)
    )
    mirror = None
    if optuna_storage is not None:
        mirror = Mirror(optuna_storage, f"{store.root} {info.fingerprint}", settings.objectives, space)
    earlier = begin_study(store, study, resume=settings.resume)
    budget = math.inf if settings.time_budget_s is None else settings.time_budget_s
    if settings.probes:
        earlier += run_probes(
            space,
            earlier,
            probes=settings.probes,
            store=store,
            dataset=dataset_uri,
            preprocessing=info.preprocessing,
            train=train,
            val=val,
            seed=settings.seed,
            deadline=began + PROBE_SHARE * budget,
        )
        points = [*best_probes(earlier, space), *points]
    points += space.usual()
    job = TrialJob(
        study=store,
        preprocessing=info.preprocessing,
        epochs=settings.epochs,
        seed=settings.seed,
        threads=settings.cpus_per_trial,
        device="cuda" if resources.get("GPU") else "cpu",
        dataset=dataset_uri,
        features=str(cache_folder("features")),
        objective=parse_objectives(settings.objectives)[0].name,
        latency=LATENCY in settings.objectives,
    )
    trainable = _trainable(train, val, job, resources, settings.workers_per_trial)
    search_round = partial(
        _round,
        trainable,
        store,
        settings=settings,
        space=space,
        resources=resources,
        concurrent=concurrent,
        mirror=mirror,
    )
    kept = FINAL_SHARE if settings.finals else 0.0
    records, interrupted = search_round(earlier, points=points, deadline=began + (1 - kept) * budget)
    if settings.finals and not interrupted:
        finals = final_trials(records, info.size, settings.finals)
        records, _ = search_round(records, finals=finals, deadline=began + budget)
    if mirror is not None:
        mirror.close()
    found = conclude(store, without_probes(records), study, dataset=info, val=val, select=settings.select)
    record, bundle = promote_best(
        store,
        records,
        study,
        dataset=info,
        train=train,
        val=val,
        select=settings.select,
        show_films=settings.show_films,
        optimism=found.selection,
    )
    assert record.auc is not None  # the leaderboard holds only trials with a result
    if dealt is not None:
        ranked = [one for one in leaderboard(records) if BASELINE not in one.parameters][: settings.confirm]
        found = add_confirmed(
            store, found, confirm(store, ranked, dealt, run=as_ray_tasks(resources), known=found.confirmed)
        )
    remove_stale_checkpoints(store, records)  # of workers that were stopped and had one more to put
    trials = without_probes(records)
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
        front=study_front(trials, settings.objectives),
        probes=len(records) - len(trials),
    )


def _check_weights(space: SearchSpace, info: DatasetInfo) -> None:
    """Raise what keeps pretrained weights from fitting their backbone now, and not trial by trial."""
    for family in space.families:
        for weights in space.weights_of(family):
            seeded_network(ModelSpec(name=family, preprocessing=info.preprocessing), weights, 0)


def _round(
    trainable: Any,
    store: Store,
    earlier: Sequence[TrialRecord],
    *,
    settings: SearchSettings,
    space: SearchSpace,
    points: Sequence[Mapping[str, Scalar]] = (),
    finals: Sequence[Mapping[str, Scalar]] | None = None,
    deadline: float,
    resources: dict[str, float],
    concurrent: int,
    mirror: Mirror | None = None,
) -> tuple[list[TrialRecord], bool]:
    """Run trials until there are as many as wanted: the search's, `points` first; or the `finals`, and no others.

    What the study has then, probes included, and whether somebody interrupted it.
    """
    unfinished = unfinished_trials(store, earlier)
    due = [trial for trial in unfinished if (FINAL in trial.parameters) == (finals is not None)]
    searcher, wanted = suggestions(space, earlier, settings, unfinished=due, points=points, finals=finals)
    if finals is None and has_converged(without_probes(earlier), settings.patience):
        log.info("the study has converged: its last %d trials brought no gain", settings.patience)
        wanted = 0
    if not wanted or time.monotonic() >= deadline:
        return list(earlier), False
    taken_up = [trial for place, trial in enumerate(due) if place < wanted]
    at_a_time = int(min(concurrent, wanted))
    log.info(
        "%s to run%s, %d at a time, each on %s",
        "trials until the time is up" if math.isinf(wanted) else f"{wanted} {'trials' if finals is None else 'finals'}",
        *(f", {len(taken_up)} of them begun before" if due else "", at_a_time, resources),
    )
    with board() as shown:
        ledger = Ledger(
            store,
            earlier,
            planned=len(without_probes(earlier)) + wanted,
            seed=settings.seed,
            deadline=deadline,
            epochs=settings.epochs,
            next_number=next_number(earlier, unfinished),
            board=shown,
            metric=parse_objectives(settings.objectives)[0].name,
            mirror=mirror,
        )
        config = tune.TuneConfig(
            search_alg=searcher,
            scheduler=FamilyScheduler(partial(_league, settings), _past(store, earlier, taken_up, finals is not None)),
            num_samples=-1 if math.isinf(wanted) else int(wanted),
            max_concurrent_trials=at_a_time,
            time_budget_s=None if math.isinf(deadline) else max(1.0, deadline - time.monotonic()),
            reuse_actors=settings.workers_per_trial == 1,
        )
        _run(trainable, config, ledger, Converged(ledger, settings.patience if finals is None else 0))
    ended = len(ledger.records) - len(without_probes(earlier))
    converged = finals is None and has_converged(ledger.records, settings.patience)
    interrupted = ended < wanted and not converged and time.monotonic() < deadline
    return [*ledger.probes, *ledger.records], interrupted


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


def _trainable(train: Films, val: Films, job: TrialJob, resources: dict[str, float], workers: int) -> Any:
    if workers == 1:
        return tune.with_resources(tune.with_parameters(run_trial, train=train, val=val, job=job), resources)
    films = ray.put((train, val))
    group = Group(workers=workers, cpus=resources["CPU"], gpus=resources.get("GPU", 0.0), films=films)
    return tune.with_resources(tune.with_parameters(run_group_trial, group=group, job=job), DRIVER)


def _league(settings: SearchSettings) -> ASHAScheduler:
    return ASHAScheduler(
        time_attr=TIME,
        metric=OBJECTIVE,
        mode="max",
        max_t=settings.epochs,
        grace_period=min(settings.grace_epochs, settings.epochs),
        reduction_factor=settings.reduction_factor,
        stop_last_trials=False,  # a trial that reaches the last epoch ends by itself, so it is complete and not pruned
    )


def _past(store: Store, earlier: Sequence[TrialRecord], taken_up: Sequence[StartedTrial], finals: bool) -> Past:
    """What the earlier runs left for the leagues of the search, or for those of the finals."""
    checkpoints = {trial.trial_id: load_checkpoint(store, trial.trial_id) for trial in taken_up}
    league = [
        one for one in earlier if not {BASELINE, PROBE} & set(one.parameters) and (FINAL in one.parameters) == finals
    ]
    return Past(
        finished=[(one.trial_id, one.model, one.history) for one in league],
        taken_up={name: checkpoint.facts["history"] for name, checkpoint in checkpoints.items() if checkpoint},
    )


def _run(trainable: Any, config: tune.TuneConfig, ledger: Ledger, stop: Converged) -> None:
    """Run the trials. Ray Tune's own state goes to a folder that is thrown away: the study is the ledger's."""
    with _quiet(), tempfile.TemporaryDirectory(prefix="rayscan-tune-") as scratch:
        tune.Tuner(
            trainable,
            tune_config=config,
            run_config=tune.RunConfig(
                name="study",
                storage_path=scratch,
                callbacks=[ledger],
                stop=stop,
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                verbose=0,
            ),
        ).fit()
    ledger.close()


@contextmanager
def _quiet() -> Iterator[None]:
    """No log files of Ray Tune and none of its lines on stdout, where results go; the ledger tells what happens."""
    tune_log = logging.getLogger("ray.tune")
    level = tune_log.level
    before = {name: os.environ.get(name) for name in _QUIET}
    tune_log.setLevel(logging.CRITICAL)
    os.environ.update(_QUIET)
    try:
        with warnings.catch_warnings():
            # of a trial that was tried again: Ray counts its reports from 1 once more, and Optuna keeps the first ones
            warnings.filterwarnings("ignore", message="The reported value is ignored")
            yield
    finally:
        tune_log.setLevel(level)
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
