"""The settings of a search: everything a person or a job file may choose about it."""

import math
from dataclasses import dataclass
from typing import Final, Literal

from models.errors import InputError
from models.intended_use import ANY, IntendedUse
from tuning.recipes.choices import SELECTS, Select
from tuning.training.objectives import LOG_SCORE, parse_objectives
from tuning.training.settings import TrainSettings

Method = Literal["tpe", "random", "grid"]
"""How `tune` picks what to try next."""
TRIALS: Final = 20
"""The default of a search without a time budget."""
PROBE_SHARE: Final = 0.25
"""The share of a time budget that probes may take."""
FINAL_SHARE: Final = 0.3
"""The share of a time budget kept for the finals: an epoch at 224 pixels takes three times as long as at 128."""


SHARED_GPU: Final = 0.25
"""The default of a trial of one worker: most are small networks, each of which leaves a GPU idle most of the time."""


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How to search."""

    trials: int | None = None
    """Trials of the study in the end, including baselines, failed ones and those of earlier runs; a grid takes all
    its points instead. None: TRIALS, or with a time budget as many as it allows."""
    time_budget_s: float | None = None
    """Stop after this many seconds with the best so far; None for no limit."""
    patience: int = 0
    """Stop with the best so far after this many trials in a row that raised the best value by no more than the
    objective's gain (`tuning/training/objectives.py`); 0 for never. TPE draws its first ten trials at random, so give
    more than that."""
    search: Method = "tpe"
    """`tpe`: Optuna's multivariate TPE; `random`; `grid`: every point of a small discrete space."""
    epochs: int = TrainSettings.epochs
    """Of a trial, at most."""
    grace_epochs: int | None = None
    """No trial is stopped before this epoch. None: the first by which the learning rate of `one_cycle` has fallen to
    half (`tuning.training.schedule.settled`): while it is high, a network says little about what it will be."""
    reduction_factor: int = 3
    """At each rung, one trial of so many of its family goes on (ASHA's eta)."""
    space: str | None = None
    """A space of `tuning/spaces/` by its name, or a TOML file as `tuning/spaces/space_file.py` reads it. None:
    `default`, or `grid`."""
    families: tuple[str, ...] | None = None
    """Instead of the space's: `mlp`, `cnn`, names of timm backbones."""
    resolutions: tuple[int, ...] | None = None
    """Instead of the space's: sides of the training input in pixels; those above the dataset's size are left out."""
    weights: str | None = None
    """Pretrained weights that backbones start from, instead of the space's: file, URI or `imagenet`."""
    objectives: tuple[str, ...] = (LOG_SCORE,)
    """What to optimise (`tuning/training/objectives.py`): one objective on the validation films, and perhaps `latency`.
    With both, the trial of the Pareto front that is best on the films becomes the model. With a limit, `latency<=5`,
    architectures that take longer for a film are not trained."""
    probes: int = 0
    """Heads on frozen features to try before the trials; the best are the first to be fine-tuned
    (`tuning/search/probes.py`). They take `PROBE_SHARE` of the time budget at most."""
    finals: int = 0
    """How many of the best trials are trained once more on films of the dataset's own size, all else the same, if
    theirs were smaller; beyond `trials`. `FINAL_SHARE` of the time budget is kept for them."""
    confirm: int = 0
    """How many of the best trials are trained anew over folds of the train patients when the search has ended, and
    judged on patients that had no part in any choice (`tuning/study/confirm.py`); beyond the time budget."""
    warm_start: str | None = None
    """An earlier study, whose best trials are tried first."""
    seed: int = 0
    """Of the suggestions and of every trial's training. TPE depends on the order in which trials end, so a search
    repeats exactly only with one trial at a time."""
    select: Select = "auc"
    """Which trial becomes the model: the best on the validation films (`auc`), or the most `robust` of the few best."""
    intended_use: IntendedUse = ANY
    """What a person states of the model's intended use; the rest is what the training films show."""
    show_films: bool = True
    """Put a few validation films, which are patients' images, and the model's maps of them into the winner's bundle."""
    resume: bool = False
    """Continue the study at STUDY: first the trials that were under way, each from its last whole epoch. Finished ones
    are not run again."""
    workers_per_trial: int = 1
    """Processes that train one trial together, perhaps on several nodes; by default one, the trial's own."""
    cpus_per_trial: int | None = None
    """Of each of its workers. None: one, or with a time budget as many as let whole trainings end in it
    (`tuning/search/pace.py`)."""
    gpus_per_trial: float | None = None
    """Of each of its workers; a fraction lets several small trials of one worker share a GPU, each with its share of
    the memory. None: `SHARED_GPU` for trials of one worker, else whole ones, where the cluster has any or its
    autoscaler may start one; else none."""
    max_concurrent: int | None = None
    """Trials at a time; probes and folds to confirm take no more cores than those. None: as many as there is room for
    when the cluster has grown to its limits. Ray has no priorities, so what is to start beside the search needs the
    cores that this leaves."""

    def __post_init__(self) -> None:
        for name in ("trials", "epochs", "grace_epochs", "workers_per_trial", "cpus_per_trial", "max_concurrent"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; give at least 1")
        for name in ("probes", "finals", "confirm"):
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

    @property
    def search_share(self) -> float:
        """The share of a time budget that its trials have, beside probes and finals."""
        return 1 - (PROBE_SHARE if self.probes else 0) - (FINAL_SHARE if self.finals else 0)

    @property
    def most_trials(self) -> float:
        """`trials`, or its default."""
        if self.trials is not None:
            return self.trials
        return TRIALS if self.time_budget_s is None else math.inf


def _check_gpus(gpus: float, workers: int) -> None:
    """Raise `InputError` for what Ray cannot give a worker: it assigns a fraction of one GPU, or whole ones."""
    if not (0 <= gpus <= 1 or (gpus > 1 and gpus % 1 == 0)):
        raise InputError(f"gpus_per_trial is {gpus}; give a fraction of one GPU, such as 0.25, or a whole number")
    if workers > 1 and gpus % 1:
        raise InputError(f"gpus_per_trial is {gpus}; workers that train together need whole GPUs")
