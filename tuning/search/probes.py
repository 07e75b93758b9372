"""The cheapest rung of a search: heads on frozen features, hundreds a minute, to find what is worth fine-tuning.

The features of the films are computed once for every backbone that starts from pretrained weights, and every resolution
and normalisation the space has for it (`tuning/training/features.py`). Optuna then suggests heads: which features, and
the parameters in the table `[probe]` of the space. Ray tasks fit `BATCH` of them at a time, because a task for each
would cost more than it saves.

A probe is a row of `trials.parquet` of the kind `probe`, and no trial of the search: it leaves no model and is not on
the leaderboard. What is learned from it goes on: the best of each kind of features is enqueued as a trial with
`head_first` and the probe's `l2`, before the search's sampler makes suggestions of its own.
"""

import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import optuna
import ray
import torch
from optuna.samplers import TPESampler

from models.engines.allocator import keep_memory
from models.errors import InputError
from models.spec import Scalar
from pipelines.bundles import cache_folder
from pipelines.progress import progress
from pipelines.storage import Store
from tuning.search.frozen_trial import frozen_trial
from tuning.search.room import Waiting
from tuning.search.settings import SHARED_GPU
from tuning.spaces.domain import Suggest
from tuning.spaces.space import PROBES, SearchSpace, TrialPlan, to_plan
from tuning.study.records import TrialRecord, next_number
from tuning.study.store import write_trials
from tuning.training.features import Features
from tuning.training.films import TrainingFilms
from tuning.training.head_settings import HeadSettings
from tuning.training.heads import fit_head
from tuning.training.start import frozen_features, seeded_network

BATCH: Final = 16
"""Heads of one Ray task: 4 to 8 s, so that the sampler, which learns of them together, is never far behind."""
WRITE_EVERY: Final = 5.0
"""Seconds between two writes of the study's table: what a killed driver loses at most."""
GRACE: Final = 30.0
"""Seconds after the deadline for the tasks that run then; those that still wait for a node are given up."""
BEST: Final = 3
"""Kinds of features whose best head is fine-tuned."""
MARK: Final = "features"
_CHOSEN: Final[tuple[str, ...]] = ("weights", "resolution", "normalise", "same_padding")
"""What features depend on, besides the family and the films."""

log = logging.getLogger("rayscan")


@dataclass(frozen=True, kw_only=True)
class FeatureKind:
    """Features that heads may be fitted to: those of one backbone, with its weights and preprocessing."""

    family: str
    values: Mapping[str, Scalar]
    """Those of `weights`, `resolution`, `normalise` and `same_padding` that the space has values for."""

    @property
    def name(self) -> str:
        """Unique in a study."""
        return " ".join([self.family, *(f"{name}={value}" for name, value in self.values.items())])


@dataclass(frozen=True, kw_only=True)
class ProbeSpace:
    """Which head on which features; calling it with an Optuna trial makes the trial's suggestions."""

    kinds: tuple[FeatureKind, ...]
    space: SearchSpace

    def __call__(self, trial: Suggest) -> tuple[FeatureKind, dict[str, Scalar]]:
        """The features, and the settings of the head by name."""
        names = [kind.name for kind in self.kinds]
        kind = self.kinds[names.index(trial.suggest_categorical(MARK, names))]
        return kind, {name: domain.suggest(trial, name) for name, domain in self.space.tables.get(PROBES, {}).items()}


def feature_kinds(space: SearchSpace) -> tuple[FeatureKind, ...]:
    """Every kind of features of the space. Raises `InputError` where no backbone starts from weights."""
    kinds = []
    for family in space.families:
        branch = space.branch(family, pretrained=True)
        choices: dict[str, tuple[Scalar, ...]] = {name: branch[name][1].edges() for name in _CHOSEN if name in branch}
        choices["weights"] = tuple(space.weights_of(family))
        kinds += [
            FeatureKind(family=family, values=dict(zip(choices, values, strict=True)))
            for values in itertools.product(*choices.values())
        ]
    if not kinds:
        raise InputError(
            "probes are heads on frozen features, but no backbone of this space starts from weights; name one with"
            " --family and its weights with --weights, or both in a file for --space"
        )
    return tuple(kinds)


def run_probes(
    space: SearchSpace,
    earlier: Sequence[TrialRecord],
    films: TrainingFilms,
    *,
    probes: int,
    store: Store,
    seed: int,
    deadline: float,
    at_a_time: int,
) -> list[TrialRecord]:
    """Probe until the study has `probes` probes, or `deadline` (of `time.monotonic`); the new rows, already written.

    `at_a_time` tasks of one core fit heads. Raises `InputError` where the space has nothing to probe.
    """
    chooser = ProbeSpace(kinds=feature_kinds(space), space=space)
    before = [record for record in earlier if record.kind == "probe"]
    wanted = probes - len(before)
    if wanted <= 0:
        return []
    log.info("%d probes on %s", wanted, "; ".join(kind.name for kind in chooser.kinds))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # the same seed would repeat the suggestions of the first run
    study = optuna.create_study(direction="maximize", sampler=TPESampler(seed=seed + len(before)))
    study.add_trials([_frozen(record, chooser) for record in before])
    features = _features(chooser, films, seed)
    number = next_number(earlier)
    records: list[TrialRecord] = []
    began = written = time.monotonic()
    try:
        with progress("probes", wanted, "heads") as advance:
            asked = _Asked(probes=wanted, seed=seed, deadline=deadline, at_a_time=at_a_time)
            for batch in _batches(study, chooser, features, asked):
                records += [_record(number + len(records) + place, head, seed) for place, head in enumerate(batch)]
                advance(len(batch))
                if time.monotonic() - written > WRITE_EVERY:
                    write_trials(store, [*earlier, *records])
                    written = time.monotonic()
    finally:  # after Ctrl-C, too
        write_trials(store, [*earlier, *records])
    fitting = sum(record.seconds for record in records)
    took = time.monotonic() - began
    log.info("%d probes in %.0f s, %.0f s of them spent fitting heads", len(records), took, fitting)
    return records


def best_probes(records: Sequence[TrialRecord], space: SearchSpace) -> list[dict[str, Scalar]]:
    """Trials to enqueue, one for each of the best `BEST` kinds of features, with the classifier of its best probe.

    Heads with a hidden layer do not fit into the networks and are left out.
    """
    usable = [record for record in records if record.kind == "probe" and not record.parameters.get("hidden")]
    points: list[dict[str, Scalar]] = []
    seen: set[tuple[Scalar, ...]] = set()
    for record in sorted(usable, key=lambda record: (-(record.auc or 0.0), record.number)):
        values = {name: record.parameters[name] for name in _CHOSEN if name in record.parameters}
        kind = (record.model, *values.values())
        if kind in seen or len(seen) == BEST:
            continue
        seen.add(kind)
        head = (
            {"head_first": True, "l2": record.parameters["l2"]} if "l2" in record.parameters else {"head_first": True}
        )
        try:
            points.append(space.point(record.model, {**values, **head}))
        except InputError as error:
            log.warning("probe %d (AUC %.4f) is not fine-tuned: %s", record.number, record.auc, error)
        else:
            log.info("probe %d (AUC %.4f) will be fine-tuned: %s", record.number, record.auc, points[-1])
    return points


@dataclass(frozen=True, kw_only=True)
class _Fitted:
    kind: FeatureKind
    head: Mapping[str, Scalar]
    auc: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """How many heads are wanted, and how they are come by."""

    probes: int
    seed: int
    deadline: float
    at_a_time: int
    """Tasks."""


def _batches(
    study: optuna.Study, chooser: ProbeSpace, features: Mapping[str, tuple[Any, Any]], asked: _Asked
) -> Iterator[list[_Fitted]]:
    """Heads in the order in which their tasks end."""
    running: dict[Any, list[tuple[optuna.Trial, FeatureKind, dict[str, Scalar]]]] = {}
    left = asked.probes
    try:
        while True:
            while left and len(running) < asked.at_a_time and time.monotonic() < asked.deadline:
                trials = [study.ask() for _ in range(min(BATCH, left))]
                batch = [(trial, *chooser(trial)) for trial in trials]
                running[_submit([(kind, head) for _, kind, head in batch], features, asked.seed)] = batch
                left -= len(batch)
            done = _next_done(list(running), asked.deadline + GRACE)
            if not done:
                return
            fitted = []
            for (trial, kind, head), (auc, seconds) in zip(running.pop(done), ray.get(done), strict=True):
                study.tell(trial, auc)
                fitted.append(_Fitted(kind=kind, head=head, auc=auc, seconds=seconds))
            yield fitted
    finally:
        for task in running:
            ray.cancel(task)


def _next_done(running: Sequence[Any], deadline: float) -> Any | None:
    """The next task that ends; None where there is none, or none ends by the deadline."""
    waiting = Waiting()
    while running and time.monotonic() < deadline:
        done, _ = ray.wait(list(running), num_returns=1, timeout=1)
        if done:
            return done[0]
        waiting.look(len(running), int(ray.cluster_resources().get("CPU", 0)))  # type: ignore[no-untyped-call]
    return None


def _submit(
    heads: Sequence[tuple[FeatureKind, Mapping[str, Scalar]]], features: Mapping[str, tuple[Any, Any]], seed: int
) -> Any:
    """A task that fits these heads; it gets only the features it needs."""
    names = list(dict.fromkeys(kind.name for kind, _ in heads))
    sides = [side for name in names for side in features[name]]
    wanted = [
        (names.index(kind.name), HeadSettings(**head, seed=seed))  # type: ignore[arg-type] # the space checked them
        for kind, head in heads
    ]
    return _fit_heads.remote(wanted, *sides)


@ray.remote(num_cpus=1)
def _fit_heads(heads: Sequence[tuple[int, HeadSettings]], *sides: Features) -> list[tuple[float, float]]:
    """Validation AUC and seconds of each head (place, settings), fitted to the features of that place.

    `sides` are the training and validation features of place 0, then of place 1, and so on.
    """
    keep_memory()  # without it the first head took four times as long; with it, not measured
    torch.set_num_threads(1)
    # Ray's shared memory is read-only, which torch warns about
    own = [replace(side, values=np.array(side.values)) for side in sides]
    results = []
    for place, settings in heads:
        fitted = fit_head(own[2 * place], own[2 * place + 1], settings)
        results.append((fitted.val_auc, fitted.seconds))
    return results


def _features(chooser: ProbeSpace, films: TrainingFilms, seed: int) -> dict[str, tuple[Any, Any]]:
    """The training and validation features of every kind, by its name, as Ray objects that may still be computed."""
    # a task needs the films' names, not their pixels: it reads those itself where the features are not cached
    train, val = (replace(side, pixels=np.empty((0, 0, 0), dtype=np.uint8)) for side in (films.train, films.val))
    unseen = ray.put(replace(films, train=train, val=val))
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus = SHARED_GPU if have.get("GPU", 0) >= 1 else 0.0
    features: dict[str, tuple[Any, Any]] = {}
    for kind in chooser.kinds:
        parameters = chooser.space.point(kind.family, kind.values)
        plan = to_plan(parameters, preprocessing=films.info.preprocessing, epochs=1, seed=seed)
        task: Any = _frozen_features.options(num_gpus=gpus)  # Ray's types know only tasks of one result
        first, second = task.remote(plan, unseen, str(cache_folder("features")), "cuda" if gpus else "cpu")
        features[kind.name] = (first, second)
    return features


@ray.remote(num_cpus=1, num_returns=2)
def _frozen_features(plan: TrialPlan, films: TrainingFilms, folder: str, device: str) -> tuple[Features, Features]:
    assert plan.weights is not None
    network, _ = seeded_network(plan.spec, plan.weights, plan.training.seed)
    return frozen_features(network, plan.spec, films, folder=folder, threads=1, device=torch.device(device))


def _frozen(record: TrialRecord, chooser: ProbeSpace) -> optuna.trial.FrozenTrial:
    """An earlier probe as Optuna's sampler wants it."""
    values = {name: record.parameters[name] for name in _CHOSEN if name in record.parameters}
    kind = FeatureKind(family=record.model, values=values)
    return frozen_trial(record, chooser, parameters={MARK: kind.name, **record.parameters})


def _record(number: int, fitted: _Fitted, seed: int) -> TrialRecord:
    return TrialRecord(
        trial_id=f"probe_{number:05d}",
        number=number,
        kind="probe",
        status="complete",
        model=fitted.kind.family,
        parameters={"family": fitted.kind.family, **fitted.kind.values, **fitted.head},
        auc=fitted.auc,
        epochs=0,
        history=[],
        seconds=fitted.seconds,
        seed=seed,
        finished_at=datetime.now(UTC),
    )
