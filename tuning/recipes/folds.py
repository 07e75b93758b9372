"""A held-out fold of a cross-validation, and the finished folds of a run that was interrupted.

CACHE/folds/<run>-<number>.json           one fold of `crossvalidate`
CACHE/folds/<run>-<number>.safetensors    the model of one fold of `train`

They are removed when all folds of the run are done.
<run> stands for everything that determines a fold: films, recipe, weights, number of folds, torch, device, and the code
of rayscan. So the same command goes on where it was interrupted, and any other one starts from the beginning.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from importlib.metadata import version
from importlib.resources import as_file, files
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.engines.machine import choose_device
from models.errors import InputError
from models.spec import ModelSpec, Scalar
from models.statistics.calibration import Calibration
from models.statistics.robustness import Robustness
from pipelines.bundles import cache_folder
from pipelines.storage import open_store, read_object
from tuning.recipes.choices import Folds
from tuning.recipes.recipe import Recipe
from tuning.toml_files import HUB
from tuning.training.checkpoint import Checkpoint, under
from tuning.training.loop import EpochReport, Fitted


@dataclass(frozen=True, kw_only=True)
class Fold:
    """A held-out fold, and the output of the model made without it for its n films."""

    number: int
    """From 1."""
    films: npt.NDArray[np.intp]
    """Indices of its films among all films, [n]."""
    probability: npt.NDArray[np.float32]
    """Calibrated, of disease [n]."""
    calibration: Calibration
    """Fitted, and its operating points locked, on the fold's own validation part."""
    robustness: Robustness
    """At the default operating point."""
    val_auc: float
    """On the validation part that chose the epoch, as `train` would report it."""
    best_epoch: int
    chosen: Mapping[str, Scalar]
    """The combination of a grid that its own validation part chose; empty without a grid."""
    seconds: float
    """Duration of the training, all combinations of a grid together."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        arrays = {"films": self.films.tolist(), "probability": self.probability.tolist()}
        return {**asdict(self), **arrays, "calibration": self.calibration.to_json(), "chosen": dict(self.chosen)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Fold":
        """The inverse of `to_json`."""
        read = {
            "films": np.array(value["films"], dtype=np.intp),
            "probability": np.array(value["probability"], dtype=np.float32),
            "calibration": Calibration.from_json(value["calibration"]),
            "robustness": Robustness(**value["robustness"]),
        }
        return cls(**{**value, **read})


class KeptFolds:
    """The finished folds of one run, in the cache of this machine."""

    def __init__(self, fingerprint: str, recipe: Recipe, folds: Folds) -> None:
        """`fingerprint` is that of the data set."""
        self._store = open_store(str(cache_folder("folds")))
        run = _run(fingerprint, recipe, folds)
        self._names = {number: f"{run}-{number}.json" for number in range(1, folds.count + 1)}

    def read(self, number: int) -> Fold | None:
        """The fold; None if it is not there. Raises `InputError` if the file does not hold a fold."""
        name = self._names[number]
        if not self._store.exists(name):
            return None
        try:
            return Fold.from_json(json.loads(self._store.get(name)))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self._store.uri(name)} is not a fold; remove it, and it is computed again") from error

    def keep(self, fold: Fold) -> None:
        """Write a fold, whole or not at all."""
        self._store.put(self._names[fold.number], json.dumps(fold.to_json()).encode())

    def forget(self) -> None:
        """Remove all folds of the run."""
        self._store.delete_all(list(self._names.values()))


class KeptModels:
    """The models of the finished folds of one run, in the cache of this machine."""

    def __init__(self, fingerprint: str, recipe: Recipe, folds: Folds) -> None:
        """`fingerprint` is that of the data set."""
        self._store = open_store(str(cache_folder("folds")))
        run = _run(fingerprint, recipe, folds)
        self._names = {number: f"{run}-{number}.safetensors" for number in range(1, folds.count + 1)}
        self._settings = recipe.training

    def read(self, number: int) -> Fitted | None:
        """The model; None if it is not there. Raises `InputError` if the file does not hold one."""
        name = self._names[number]
        if not self._store.exists(name):
            return None
        try:
            kept = Checkpoint.from_bytes(self._store.get(name))
            history = tuple(EpochReport(**report) for report in kept.facts["history"])
            return Fitted(
                spec=ModelSpec.from_json(kept.facts["spec"]),
                settings=self._settings,
                state_dict=kept.part("state"),
                val_logits=kept.tensors["val_logits"].numpy(),
                history=history,
                best=history[kept.facts["best"]],
                seconds=kept.facts["seconds"],
            )
        except (InputError, KeyError, TypeError, IndexError) as error:
            raise InputError(f"{self._store.uri(name)} is not a fold; remove it, and it is trained again") from error

    def keep(self, number: int, fitted: Fitted) -> None:
        """Write a model, whole or not at all."""
        tensors = {**dict(under("state", fitted.state_dict)), "val_logits": torch.tensor(fitted.val_logits)}
        facts = {
            "spec": fitted.spec.to_json(),
            "history": [asdict(report) for report in fitted.history],
            "best": fitted.history.index(fitted.best),
            "seconds": fitted.seconds,
        }
        self._store.put(self._names[number], Checkpoint(tensors=tensors, facts=facts).to_bytes())

    def forget(self) -> None:
        """Remove all models of the run."""
        self._store.delete_all(list(self._names.values()))


def _run(fingerprint: str, recipe: Recipe, folds: Folds) -> str:
    """32 hex digits that stand for everything that determines the folds."""
    named = recipe.weights is None or recipe.weights == HUB
    digest = blake2b(b"" if named else read_object(str(recipe.weights)), digest_size=16)
    place = str(choose_device(recipe.training.device))
    known = {
        "films": fingerprint,
        "recipe": asdict(recipe),
        "folds": str(folds),
        "torch": version("torch"),
        "device": place,
    }
    digest.update(json.dumps(known, sort_keys=True).encode())
    for package in ("models", "pipelines", "tuning"):
        with as_file(files(package)) as folder:
            for path in sorted(folder.rglob("*.py")):
                digest.update(path.read_bytes())
    return digest.hexdigest()
