"""The page of a bundle: what the model is, what it learnt from, how it did, and how often it was tested since."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from markupsafe import Markup
from matplotlib.axes import Axes

from models.bundle import Bundle
from models.calibration import Calibration
from pipelines.bundles import evaluations, fetch_bundle
from pipelines.results.pages.charts import BLUE, GREY, VERMILION, chart, legend_below, whole_numbers
from pipelines.results.pages.evaluation import confusion_chart
from pipelines.results.pages.page import number, render

_SHOWN_APART: Final = frozenset({"counts", "history", "training", "versions"})


def model_page(uri: str) -> str:
    """HTML of the bundle at a URI, and of the ledger beside it. Raises `BundleError` when it is not whole."""
    bundle = fetch_bundle(uri)
    entries = [entry for entry in bundle.evaluation.values() if "metrics" in entry]
    history = bundle.lineage.get("history", [])
    best = bundle.lineage.get("best_epoch")
    return render(
        "model.html",
        title=f"Model report: {bundle.spec.name}",
        model_id=bundle.model_id,
        spec=bundle.spec,
        calibration=bundle.calibration,
        entries=entries,
        confusions=[confusion_chart(entry["metrics"]) for entry in entries],
        ledger=evaluations(uri),
        counts=bundle.lineage.get("counts", {}),
        losses=_losses(history) if len(history) > 1 else None,
        aucs=_aucs(history, best) if len(history) > 1 else None,
        identity=_identity(bundle),
        lineage=_lineage(bundle.lineage),
    )


def plain(value: Any) -> str:
    """A JSON value as a short text: numbers to four digits, mappings as `name value` pairs."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        return " · ".join(f"{name} {plain(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(inner) for inner in value) or "none"
    return value if isinstance(value, str) else json.dumps(value)


def _identity(bundle: Bundle) -> dict[str, str]:
    preprocessing = bundle.spec.preprocessing
    return {
        "Model id": bundle.model_id,
        "Architecture": bundle.spec.name,
        "Its parameters": plain(bundle.spec.parameters),
        "Classes": plain(bundle.spec.classes),
        "Input": f"{preprocessing.size} pixels square, grey, from films of {preprocessing.film_size}",
        "Decoding": preprocessing.decode,
        "Normalisation": preprocessing.normalise,
        "Calibration": _calibration(bundle.calibration),
        "SHA-256 of the weights": bundle.hashes["weights.safetensors"],
    }


def _calibration(found: Calibration) -> str:
    how = "isotonic" if found.curve else "Platt" if found.bias else "temperature"
    told = {"temperature": found.temperature, "offset of the log-odds": found.bias, "knots": len(found.curve)}
    return f"{how}: {plain({name: value for name, value in told.items() if value})}"


def _lineage(lineage: Mapping[str, Any]) -> dict[str, str]:
    told = {name.replace("_", " "): plain(value) for name, value in lineage.items() if name not in _SHOWN_APART}
    told |= {name: plain(lineage[name]) for name in ("training", "versions") if name in lineage}
    return told


def _losses(history: Sequence[Mapping[str, Any]]) -> Markup:
    epochs = [row["epoch"] for row in history]

    def paint(axes: Axes) -> None:
        axes.plot(epochs, [row["train_loss"] for row in history], "o-", color=GREY, markersize=4, label="training")
        axes.plot(
            epochs, [row["val_loss"] for row in history], "s--", color=VERMILION, markersize=4, label="validation"
        )
        axes.set(xlabel="Epoch", ylabel="Loss (nats)")
        whole_numbers(axes.xaxis)
        legend_below(axes)

    return chart(paint, alt="Training and validation loss by epoch")


def _aucs(history: Sequence[Mapping[str, Any]], best: int | None) -> Markup:
    def paint(axes: Axes) -> None:
        axes.plot(
            [row["epoch"] for row in history], [row["val_auc"] for row in history], "o-", color=BLUE, markersize=4
        )
        kept = [row["val_auc"] for row in history if row["epoch"] == best]
        if best is not None and kept:
            axes.plot(best, kept[0], "o", color=VERMILION, markersize=9, label=f"epoch {best}, kept")
            legend_below(axes)
        axes.set(xlabel="Epoch", ylabel="AUC, validation films")
        whole_numbers(axes.xaxis)

    return chart(paint, alt="AUC on the validation films by epoch")
