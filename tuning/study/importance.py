"""Which parameters of a search mattered, by two methods of Optuna, from the table of its trials alone.

fANOVA (Hutter, Hoos & Leyton-Brown 2014): the share of the variance of the AUC over the whole space that each parameter
explains in a forest fitted to the trials; it knows only the parameters that all trials have. PED-ANOVA (Watanabe,
Bansal & Hutter 2023): how much the best tenth of the trials differ from all in each parameter; it takes conditional
ones, too. They answer different questions and may well differ: one says what to avoid, the other what the best have in
common.

Neither says which value is good (the slices on the study's page do), and both mistake the sampler's preferences, or
chance in few trials, for importance. A trial that was stopped early counts with what it had reached, as it does for
the sampler.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from models.spec import Scalar
from tuning.study.records import TrialRecord, leaderboard
from tuning.study.scale import is_continuous, is_logarithmic

LEAST: Final = 20
"""Trials, baselines not counted, that are needed."""
MOST_FOREST: Final = 300
"""Trials the forest is fitted to, every second (third, …) of more: these take 5 s."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Shares that add up to 1, the largest first."""

    trials: int
    fanova: Mapping[str, float]
    """Empty where no parameter that varies is shared by all trials."""
    ped_anova: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def importance(records: Sequence[TrialRecord]) -> Importance | None:
    """The importance of each parameter that varies among the trials; None for fewer than `LEAST` of them."""
    trials = sorted(
        (record for record in leaderboard(records) if record.kind != "baseline"), key=lambda record: record.number
    )
    if len(trials) < LEAST or len({trial.result for trial in trials}) < 2:
        return None
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator  # noqa: PLC0415 (slow)

    step = -(-len(trials) // MOST_FOREST)
    return Importance(
        trials=len(trials),
        fanova=_shares(trials[::step], FanovaImportanceEvaluator(seed=0)),
        ped_anova=_shares(trials, PedAnovaImportanceEvaluator()),
    )


def _shares(trials: Sequence[TrialRecord], evaluator: Any) -> dict[str, float]:
    import optuna  # noqa: PLC0415 (slow)

    distributions = _distributions([trial.parameters for trial in trials])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        known = {name: value for name, value in trial.parameters.items() if name in distributions}
        study.add_trial(
            optuna.trial.create_trial(
                value=trial.result, params=known, distributions={name: distributions[name] for name in known}
            )
        )
    with warnings.catch_warnings():
        # that the importance of a parameter of few trials is inaccurate: the page says so of all
        warnings.simplefilter("ignore", UserWarning)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in shares.items()}


def _distributions(parameters: Sequence[Mapping[str, Scalar]]) -> dict[str, Any]:
    """The distribution of each parameter that varies, inferred from its values."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution  # noqa: PLC0415 (slow)

    distributions: dict[str, Any] = {}
    for name in dict.fromkeys(name for of_trial in parameters for name in of_trial):
        values = [of_trial[name] for of_trial in parameters if name in of_trial]
        if is_continuous(values):
            numbers = [float(value) for value in values]
            distributions[name] = FloatDistribution(min(numbers), max(numbers), log=is_logarithmic(numbers))
        elif len(set(values)) > 1:
            distributions[name] = CategoricalDistribution(list(dict.fromkeys(values)))
    return distributions
