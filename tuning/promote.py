"""From a trained model to a published bundle: calibrate, lock operating points, evaluate, save, publish.

All on the validation films; a test split is touched only by `rayscan evaluate`, which records that it was.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from models.bundle import Bundle, save_bundle
from models.calibration import Calibration, fit_temperature, operating_points
from models.evaluation import evaluation_entry
from models.films import Films
from models.spec import ModelSpec
from pipelines.bundles import fetch_bundle, publish_bundle
from pipelines.ingest.dataset import DatasetInfo
from tuning.loop import Fitted


def promote(
    fitted: Fitted, train: Films, val: Films, dataset_info: DatasetInfo, out: str, *, lineage: Mapping[str, Any]
) -> Bundle:
    """Publish a trained model at a URI and return the bundle as fetched back from there, verified.

    `lineage` holds plain JSON values beyond what is recorded anyway (training settings, history, dataset fingerprint,
    counts, versions, time): where the model comes from, a trial of a study for instance.
    """
    temperature = fit_temperature(fitted.val_logits, val.labels)
    uncut = Calibration(temperature=temperature, operating_points={"balanced": 0.5})
    probability = uncut.probabilities(fitted.val_logits)[:, 1]
    calibration = Calibration(temperature=temperature, operating_points=operating_points(val.labels, probability))
    entry = evaluation_entry(
        split="val", labels=val.labels, probability=probability, subtypes=val.subtypes, calibration=calibration
    )
    recorded = {
        "training": asdict(fitted.settings),
        "seed": fitted.settings.seed,
        "history": [asdict(report) for report in fitted.history],
        "best_epoch": fitted.best.epoch,
        "seconds": fitted.seconds,
        "dataset_fingerprint": dataset_info.fingerprint,
        "counts": {"train": _counts(fitted.spec, train), "val": _counts(fitted.spec, val)},
        "versions": {name: version(name) for name in ("rayscan", "torch", "timm")},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with tempfile.TemporaryDirectory(prefix="rayscan-bundle-") as folder:
        save_bundle(
            Path(folder),
            spec=fitted.spec,
            state_dict=fitted.state_dict,
            calibration=calibration,
            evaluation={"val": entry},
            lineage={**recorded, **lineage},
        )
        publish_bundle(Path(folder), out)
    return fetch_bundle(out)


def _counts(spec: ModelSpec, films: Films) -> dict[str, Any]:
    return {
        "films": len(films),
        "patients": len(np.unique(films.patients)),
        "classes": {name: int((films.labels == index).sum()) for index, name in enumerate(spec.classes)},
    }
