"""Trials of two workers each through Ray Train. Marked chaos because they take long: a group starts in some 10 s."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch

from models.spec import Scalar
from pipelines.ingest.dataset import load_films, read_dataset_info
from pipelines.storage import open_store
from tests.tuning.films import SIZE, write_dataset
from tuning.search.driver import search
from tuning.search.settings import SearchSettings
from tuning.search.trial import TrialJob, plan_of
from tuning.spaces.space import SearchSpace, Suggest
from tuning.spaces.space_file import space_for
from tuning.study.store import read_trials
from tuning.study.trial_files import load_weights
from tuning.training.loop import fit

pytestmark = pytest.mark.chaos

EPOCHS = 2
SETTINGS = SearchSettings(trials=4, epochs=EPOCHS, grace_epochs=1, workers_per_trial=2)


class Plain(SearchSpace):
    """Trials in which nothing is random but the order of the films; the last cannot be trained."""

    def __call__(self, trial: Suggest) -> dict[str, Scalar]:
        if trial.user_attrs:
            return super().__call__(trial)
        plain: dict[str, Scalar] = {"family": "mlp", "resolution": SIZE, "mlp_width": 16, "mlp_dropout": 0.0}
        plain |= {"augment": 0.0, "optimiser": "sgd"}
        return plain | ({"optimiser": "none such"} if getattr(trial, "number", 0) == SETTINGS.trials - 1 else {})


PLAIN = Plain(**vars(space_for(SIZE, families=("mlp",), resolutions=(SIZE,))))


@pytest.fixture
def ray_with_dashboard() -> Iterator[None]:
    """Ray Train frees the CPUs of a stopped group through the dashboard."""
    os.environ["RAY_TRAIN_ENABLE_STATE_TRACKING"] = "1"
    ray.init("local", num_cpus=2, logging_level="WARNING", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("ray_with_dashboard")
def test_a_trial_of_two_workers_is_one_of_one(tmp_path: Path) -> None:
    dataset, out = str(tmp_path / "dataset"), str(tmp_path / "study")
    write_dataset(dataset)
    summary = search(dataset, out, SETTINGS, space=PLAIN)
    store = open_store(out)
    majority, baseline, plain, failed = read_trials(store)
    assert (majority.auc, majority.epochs, majority.status) == (0.5, 1, "complete")
    assert (baseline.epochs, baseline.status) == (EPOCHS, "complete")
    assert (failed.status, failed.epochs, failed.auc) == ("failed", 0, None)
    assert str(failed.error).startswith("InputError: unknown optimiser")
    assert summary.trials == {"complete": 3, "pruned": 0, "failed": 1}

    info = read_dataset_info(dataset)
    job = TrialJob(study=store, preprocessing=info.preprocessing, epochs=EPOCHS, seed=0, threads=1, device="cpu")
    plan = plan_of(plain.parameters, job)
    alone = fit(plan.spec, load_films(dataset, "train"), load_films(dataset, "val"), plan.training)
    assert plain.status == "complete"
    for report, expected in zip(plain.history, alone.history, strict=True):
        assert report["train_loss"] == pytest.approx(expected.train_loss, abs=1e-4)
        assert report["val_loss"] == pytest.approx(expected.val_loss, abs=1e-4)
        assert report["val_auc"] == pytest.approx(expected.val_auc, abs=0.005)
    weights = load_weights(store, plain.trial_id)
    for name, value in alone.state_dict.items():
        torch.testing.assert_close(weights[name], value, atol=1e-4, rtol=1e-3)
    assert not list(Path(out).glob("trials/*/checkpoint.safetensors"))
