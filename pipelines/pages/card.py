"""The model card: one page for the person who must decide whether to trust this model.

It is part of the bundle and of its hash; `rayscan report BUNDLE` renders it again from the bundle, with the later
evaluations. Imports matplotlib, so it is imported only where a bundle is made or shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from models.bundle import name_of
from models.intended_use import IntendedUse
from models.spec import ModelSpec
from models.statistics.calibration import Calibration
from pipelines.pages.claim import METHOD_NAMES, claim
from pipelines.pages.evaluation_charts import aucs_chart, evaluation_charts, losses_chart
from pipelines.pages.frame import plain, render

_SHOWN_APART: Final = frozenset(
    {"counts", "created", "dataset_fingerprint", "history", "intended_use", "training", "versions"}
)


@dataclass(frozen=True, kw_only=True)
class Since:
    """What is known about a bundle only after it was made."""

    model_id: str
    ledger: Sequence[Mapping[str, Any]]
    """Later evaluations, as `models.statistics.evaluation` makes them, with `when` and `dataset`; any of these may be
    missing."""


def render_card(
    spec: ModelSpec,
    calibration: Calibration,
    evaluation: Mapping[str, Any],
    lineage: Mapping[str, Any],
    *,
    weights: str,
    since: Since | None = None,
) -> str:
    """HTML of the card, the same for the same values.

    `evaluation` maps a split to an entry of `models/statistics/evaluation.py`, of this version or an earlier one;
    `weights` is the SHA-256 of their file.
    """
    entries = [entry for entry in evaluation.values() if "metrics" in entry]
    history = lineage.get("history", [])
    several = len(history) > 1
    return render(
        "card.html",
        title=f"Model card: {name_of(spec, lineage)}",
        name=name_of(spec, lineage),
        made=lineage.get("created"),
        spec=spec,
        calibration=calibration,
        entries=[(entry, evaluation_charts(entry)) for entry in entries],
        shows_films=any(entry.get("samples", {}).get("films") for entry in entries),
        methods=METHOD_NAMES,
        recorded=list(lineage),
        intended=IntendedUse.from_json(lineage.get("intended_use", {})).in_words(),
        counts=lineage.get("counts", {}),
        folds=lineage.get("folds"),
        data=_data(spec, lineage),
        since=since,
        losses=losses_chart(history) if several else None,
        aucs=aucs_chart(history, lineage.get("best_epoch")) if several else None,
        identity=_identity(spec, calibration, weights, since),
        lineage=_lineage(lineage),
        claim=claim(spec, calibration, evaluation.get("val"), lineage),
    )


def _data(spec: ModelSpec, lineage: Mapping[str, Any]) -> dict[str, str]:
    preprocessing = spec.preprocessing
    seen = f", {preprocessing.as_seen}" if preprocessing.as_seen else ""
    return {
        "Fingerprint of the data set": plain(lineage.get("dataset_fingerprint", "not recorded")),
        "Films": f"decoded ({preprocessing.decode}) to {preprocessing.film_size} pixels square, grey{seen}",
        "Input of the network": f"{preprocessing.size} pixels square, normalised ({preprocessing.normalise})",
    }


def _identity(spec: ModelSpec, calibration: Calibration, weights: str, since: Since | None) -> dict[str, str]:
    return {
        **({"Model id": since.model_id} if since else {}),
        "Architecture": spec.name,
        "Its parameters": plain(spec.parameters),
        "Classes": plain(spec.classes),
        "Calibration": _calibration(calibration),
        "SHA-256 of the weights": weights,
    }


def _calibration(calibration: Calibration) -> str:
    method = "isotonic" if calibration.curve else "Platt" if calibration.bias else "temperature"
    values = {
        "temperature": calibration.temperature,
        "offset of the log-odds": calibration.bias,
        "knots": len(calibration.curve),
    }
    return f"{method}: {plain({name: value for name, value in values.items() if value})}"


def _lineage(lineage: Mapping[str, Any]) -> dict[str, str]:
    recipe = lineage.get("recipe", {})
    start = {"started from": recipe.get("weights") or "random weights"} if recipe else {}
    facts = {name.replace("_", " "): plain(value) for name, value in lineage.items() if name not in _SHOWN_APART}
    return start | facts | {name: plain(lineage[name]) for name in ("training", "versions") if name in lineage}
