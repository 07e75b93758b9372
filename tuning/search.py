"""The search: Ray Tune runs the trials, Optuna suggests them, ASHA stops the poor ones, the winner becomes a bundle.

Optuna's study is filled here (finished trials, baselines, a grid's points) and handed to Ray's OptunaSearch by its
storage; OptunaSearch's own `points_to_evaluate` was refused, because it can mark no trial as a baseline. The driver
writes `STUDY/trials.parquet` as each trial ends, and each trial its whole state after each epoch, so what is lost with
a killed driver or node is the epoch under way. `Tuner.restore` was refused: it unpickles what lies on storage.
"""

import logging
import math
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final, Literal

import optuna
import ray
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FixedTrial, FrozenTrial, TrialState
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from models.errors import InputError
from models.films import Films
from models.spec import ModelSpec, Scalar
from pipelines.bundles import cache_folder
from pipelines.ingest.dataset import DatasetInfo, load_films, read_dataset_info
from pipelines.storage import Store, open_store
from tuning.board import board
from tuning.domain import Suggest
from tuning.findings import conclude
from tuning.group_trial import DRIVER, Group, run_group_trial
from tuning.known_trials import best_of, final_trials
from tuning.ledger import Converged, Ledger, has_converged
from tuning.objectives import AUC, LATENCY, parse_objectives
from tuning.probes import best_probes, run_probes
from tuning.scheduler import FamilyScheduler, Past
from tuning.selection import SELECTS, Select
from tuning.space import BASELINE, BASELINES, FINAL, GIVEN, PROBE, SearchSpace, leaves
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
    load_checkpoint,
    promote_best,
    study_front,
    unfinished_trials,
)
from tuning.trial import OBJECTIVE, TAKEN_UP, TIME, TrialJob, run_trial

log = logging.getLogger("rayscan")

_QUIET: Final = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
RETRIES: Final = 2
"""Times a trial is tried again whose process died or raised what the machine may be at fault for; a node that is taken
away with notice does not count."""

PROBE_SHARE: Final = 0.25
"""Of a time budget, at most, for probes."""
FINAL_SHARE: Final = 0.3
"""Of a time budget, kept for the finals: at 224 pixels an epoch takes three times what it takes at 128."""
_UNSAMPLED: Final = {BASELINE, PROBE, FINAL}
"""Marks of trials that no sampler has chosen."""
_STUDY_NAME: Final = "rayscan"  # of the study in memory; OptunaSearch finds it in the storage by this name


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How to search."""

    trials: int = 20
    """Trials the study is to have in the end, baselines, failed ones and those of earlier runs included; a grid takes
    all its points instead."""
    time_budget_s: float | None = None
    """Stop after this many seconds with the best so far; None for no limit."""
    patience: int = 0
    """Stop with the best so far after this many trials in a row that raised the best AUC by no more than
    `tuning.ledger.GAIN`; 0 for never. TPE draws its first ten trials at random: give more than that."""
    search: Literal["tpe", "random", "grid"] = "tpe"
    """`tpe`: Optuna's multivariate TPE; `random`; `grid`: a small discrete space, visited whole."""
    epochs: int = 8
    """At most so many per trial."""
    grace_epochs: int = 2
    """No trial is stopped before this epoch."""
    reduction_factor: int = 3
    """At each rung, the best one of so many of its family goes on (ASHA's eta)."""
    space: str | None = None
    """Where to look: a name of tuning/spaces/ or a TOML file (`tuning/space_file.py`). None: `default`, or `grid`."""
    families: tuple[str, ...] | None = None
    """In place of the space's: `mlp`, `cnn`, names of timm backbones."""
    resolutions: tuple[int, ...] | None = None
    """In place of the space's: sides of the training input in pixels; those above the dataset's size are left out."""
    weights: str | None = None
    """Pretrained weights that backbones start from, in place of the space's: file, URI or `imagenet`."""
    objectives: tuple[str, ...] = (AUC,)
    """What to look for (`tuning/objectives.py`): one of the validation films, and `latency` beside it. With both, the
    trial that becomes the model is the one of the Pareto front that is best on the films."""
    probes: int = 0
    """Heads on frozen features to try before the trials; the best are the first to be fine-tuned (`tuning/probes.py`).
    They take `PROBE_SHARE` of the time budget at most."""
    finals: int = 0
    """Of the best trials on smaller films than the dataset's, so many are trained once more at its own size, with all
    else the same, beyond `trials`. `FINAL_SHARE` of the time budget is kept for them."""
    warm_start: str | None = None
    """An earlier study, whose best trials are tried first."""
    seed: int = 0
    """Of the suggestions and of every trial's training. With several trials at a time the order in which they end
    steers TPE, so a search repeats exactly only one trial at a time."""
    select: Select = "auc"
    """Which trial becomes the model: the best validation `auc`, or of the few best the most `robust` one."""
    show_films: bool = True
    """Put a few validation films, which are patients' images, into the winner's bundle, with its maps."""
    resume: bool = False
    """Go on with the study that stands at STUDY: trials that were under way first, each from its last whole epoch.
    Finished ones are not run again."""
    workers_per_trial: int = 1
    """Processes that train one trial together, perhaps on several nodes; one by default, in the trial itself."""
    cpus_per_trial: int = 1
    """Of each of its workers."""
    gpus_per_trial: float | None = None
    """Of each of its workers; a part of one packs several small trials onto it, where they have one worker.
    None: one whole GPU where the cluster has any, else none."""
    max_concurrent: int | None = None
    """None: as many as the cluster's CPUs and GPUs hold now; give a number to let an autoscaler grow to it."""

    def __post_init__(self) -> None:
        for name in ("trials", "epochs", "grace_epochs", "workers_per_trial", "cpus_per_trial", "max_concurrent"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; give at least 1")
        for name in ("probes", "finals"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; give 0 for none")
        parse_objectives(self.objectives)
        if self.patience < 0:
            raise InputError(f"patience is {self.patience}; give 0 for none, or a number of trials")
        if self.select not in SELECTS:
            raise InputError(f"unknown selection {self.select!r}; choose {' or '.join(SELECTS)}")
        if self.reduction_factor < 2:
            raise InputError(f"reduction_factor is {self.reduction_factor}; give at least 2")
        if self.gpus_per_trial is not None:
            _check_gpus(self.gpus_per_trial, self.workers_per_trial)
        if self.time_budget_s is not None and self.time_budget_s <= 0:
            raise InputError(f"the time budget is {self.time_budget_s} s; give a positive time")


def _check_gpus(gpus: float, workers: int) -> None:
    """Raise `InputError` for what Ray can give no worker: it deals out parts of one GPU, or whole ones."""
    if not (0 <= gpus <= 1 or (gpus > 1 and gpus % 1 == 0)):
        raise InputError(f"gpus_per_trial is {gpus}; give a part of one GPU, such as 0.25, or a whole number")
    if workers > 1 and gpus % 1:
        raise InputError(f"gpus_per_trial is {gpus}; workers that train together need whole GPUs")


def search(dataset_uri: str, out: str, settings: SearchSettings, *, space: SearchSpace | None = None) -> StudySummary:
    """Search models on a dataset's train and val films; write the study to `out`, the best model to `out`/best.

    Ray must be up, and every node must reach `out`: the trials put their weights there. The test films are never read.
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
    store = open_store(out)
    study = StudyInfo(
        dataset=dataset_uri, fingerprint=info.fingerprint, space=space.to_json(), settings=asdict(settings)
    )
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
        _round, trainable, store, settings=settings, space=space, resources=resources, concurrent=concurrent
    )
    kept = FINAL_SHARE if settings.finals else 0.0
    records, interrupted = search_round(earlier, points=points, deadline=began + (1 - kept) * budget)
    if settings.finals and not interrupted:
        finals = final_trials(records, info.size, settings.finals)
        records, _ = search_round(records, finals=finals, deadline=began + budget)
    found = conclude(store, _trials(records), study, dataset=info, val=val, select=settings.select)
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
    trials = _trials(records)
    return StudySummary(
        study=store.root,
        trials=count_statuses(trials),
        ran=len(trials) - len(_trials(earlier)),
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
) -> tuple[list[TrialRecord], bool]:
    """Run trials until there are as many as wanted: the search's, `points` first; or the `finals`, and no others.

    What the study has then, probes included, and whether somebody interrupted it.
    """
    unfinished = unfinished_trials(store, earlier)
    due = [trial for trial in unfinished if (FINAL in trial.parameters) == (finals is not None)]
    suggestions, wanted = _suggestions(space, earlier, settings, unfinished=due, points=points, finals=finals)
    if finals is None and has_converged(_trials(earlier), settings.patience):
        log.info("the study has converged: its last %d trials brought no gain", settings.patience)
        wanted = 0
    if not wanted or time.monotonic() >= deadline:
        return list(earlier), False
    taken_up = due[:wanted]
    log.info(
        "%d %s to run%s, %d at a time, each on %s",
        *(wanted, "trials" if finals is None else "finals", f", {len(taken_up)} of them begun before" if due else ""),
        *(min(concurrent, wanted), resources),
    )
    with board() as shown:
        ledger = Ledger(
            store,
            earlier,
            planned=len(_trials(earlier)) + wanted,
            seed=settings.seed,
            deadline=deadline,
            epochs=settings.epochs,
            next_number=_next_number(earlier, unfinished),
            board=shown,
            metric=parse_objectives(settings.objectives)[0].name,
        )
        config = tune.TuneConfig(
            search_alg=suggestions,
            scheduler=FamilyScheduler(partial(_league, settings), _past(store, earlier, taken_up, finals is not None)),
            num_samples=wanted,
            max_concurrent_trials=min(concurrent, wanted),
            time_budget_s=None if math.isinf(deadline) else max(1.0, deadline - time.monotonic()),
            reuse_actors=settings.workers_per_trial == 1,
        )
        _run(trainable, config, ledger, Converged(ledger, settings.patience if finals is None else 0))
    ended = len(ledger.records) - len(_trials(earlier))
    converged = finals is None and has_converged(ledger.records, settings.patience)
    interrupted = ended < wanted and not converged and time.monotonic() < deadline
    return [*ledger.probes, *ledger.records], interrupted


def _trials(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    return [record for record in records if PROBE not in record.parameters]


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


def _next_number(earlier: Sequence[TrialRecord], unfinished: Sequence[StartedTrial]) -> int:
    return 1 + max([one.number for one in earlier] + [one.number for one in unfinished], default=-1)


@dataclass(frozen=True)
class _GoingOn:
    """A space in which some trials are enqueued: they go on with what an earlier run began."""

    space: SearchSpace

    def __call__(self, trial: Suggest) -> dict[str, Any]:
        constants: dict[str, Any] = self.space(trial)
        if taken_up := trial.user_attrs.get(TAKEN_UP):
            return {**constants, TAKEN_UP: taken_up}
        return constants


def _take_up(study: optuna.Study, trial: StartedTrial) -> None:
    """Enqueue a trial that was begun, under the name it had."""
    attributes: dict[str, Any] = {TAKEN_UP: {name: getattr(trial, name) for name in ("trial_id", "number", "seed")}}
    parameters: dict[str, Scalar] = trial.parameters
    if BASELINE in parameters:
        attributes[BASELINE], parameters = parameters["family"], {}
    elif FINAL in parameters:
        attributes[GIVEN], parameters = dict(parameters), {}
    study.enqueue_trial(parameters, user_attrs=attributes)


def _suggestions(
    space: SearchSpace,
    earlier: Sequence[TrialRecord],
    settings: SearchSettings,
    *,
    unfinished: Sequence[StartedTrial] = (),
    points: Sequence[Mapping[str, Scalar]] = (),
    finals: Sequence[Mapping[str, Scalar]] | None = None,
) -> tuple[OptunaSearch, int]:
    """What suggests the trials, knowing those that are there; and how many are still to run.

    First come the unfinished ones, then the baselines and the `points`, which may leave parameters to the sampler. Of
    `finals` all is given, and where they are there is nothing else.
    """
    objectives = parse_objectives(settings.objectives)
    storage = optuna.storages.InMemoryStorage()
    # a seed begun anew would repeat the suggestions of the first run
    sampler = _sampler(settings.search, settings.seed + _next_number(earlier, unfinished))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=storage, sampler=sampler, study_name=_STUDY_NAME, directions=[one.direction for one in objectives]
    )
    study.add_trials([_frozen(one, space, len(objectives)) for one in earlier if not _UNSAMPLED & set(one.parameters)])
    for trial in unfinished:
        _take_up(study, trial)
    begun = [one.parameters for one in earlier] + [one.parameters for one in unfinished]
    if finals is None:
        searched = [one for one in _trials(earlier) if FINAL not in one.parameters]
        wanted = max(0, settings.trials - len(searched))
        fresh = _enqueue(study, space if settings.search == "grid" else None, begun, points)
        if settings.search == "grid":
            wanted = len(unfinished) + fresh
    else:
        for final in finals:
            if final not in begun:
                study.enqueue_trial({}, user_attrs={GIVEN: dict(final)})
        wanted = len(unfinished) + sum(final not in begun for final in finals)
    metrics = [OBJECTIVE, LATENCY][: len(objectives)]
    modes: list[str] = [one.mode for one in objectives]
    search_alg = OptunaSearch(
        space=_GoingOn(space),
        metric=metrics if len(metrics) > 1 else metrics[0],
        mode=modes if len(modes) > 1 else modes[0],
        sampler=sampler,
        storage=storage,
        study_name=_STUDY_NAME,
    )
    return search_alg, wanted


def _enqueue(
    study: optuna.Study,
    grid: SearchSpace | None,
    begun: Sequence[Mapping[str, Scalar]],
    points: Sequence[Mapping[str, Scalar]],
) -> int:
    """Put the baselines, the points and the grid's points that were not begun yet into the study; how many."""
    done = {parameters["family"] for parameters in begun if BASELINE in parameters}
    baselines = [name for name in BASELINES if name not in done]
    for name in baselines:
        study.enqueue_trial({}, user_attrs={BASELINE: name})
    every = points if grid is None else leaves(grid)
    fresh = [point for point in every if not any(point.items() <= parameters.items() for parameters in begun)]
    for point in fresh:
        study.enqueue_trial(dict(point))
    return len(baselines) + len(fresh)


def _sampler(name: str, seed: int) -> BaseSampler:
    if name != "tpe":
        return RandomSampler(seed=seed)
    with warnings.catch_warnings():
        # without `group` a conditional space falls apart into single parameters (and a baseline, having none, would
        # do that to any space)
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(seed=seed, multivariate=True, group=True)


def _frozen(record: TrialRecord, space: SearchSpace, objectives: int = 1) -> FrozenTrial:
    """An earlier trial as Optuna's sampler wants it. Ray Tune tells a pruned trial as complete, and so does this."""
    replay = FixedTrial(dict(record.parameters))
    space(replay)
    values = [value for value in (record.value, record.latency_ms)[:objectives] if value is not None]
    usable = record.status != "failed" and len(values) == objectives
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE if usable else TrialState.FAIL,
        values=values if usable else None,
        params=replay.params,
        distributions=replay.distributions,
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
