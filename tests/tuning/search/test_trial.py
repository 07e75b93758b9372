"""What a trial keeps of itself while it trains."""

import threading
from functools import partial
from pathlib import Path

import pytest

from models.spec import Preprocessing
from pipelines.errors import StorageError
from pipelines.storage import Store, open_store
from tests.models.synthetic import SIZE, blob_films, small_spec
from tuning.search.trial import Progress, TrialJob
from tuning.study.trial_files import load_checkpoint
from tuning.training.checkpoint import Checkpoint
from tuning.training.loop import EpochReport, EpochState, TrainSettings, fit

FILMS, VAL = blob_films(40), blob_films(20, seed=1)
SETTINGS = TrainSettings(epochs=3, batch_size=16, device="cpu", threads=1, augment=0.0)


class Waiting(Store):
    """A store that takes a checkpoint only after the next epoch has begun."""

    begun = threading.Event()

    def put(self, key: str, data: bytes) -> None:
        if "checkpoint" in key:
            assert self.begun.wait(60), "no epoch trains while a checkpoint is put"
        super().put(key, data)


class Full(Store):
    """A store without room for a checkpoint."""

    def put(self, key: str, data: bytes) -> None:
        if "checkpoint" in key:
            raise StorageError(f"{key}: no space left")
        super().put(key, data)


def _instead(milliseconds: float, measured: float) -> float:
    """This many milliseconds, whatever was measured."""
    assert measured > 0
    return milliseconds


def progress_in(store: Store) -> Progress:
    job = TrialJob(study=store, preprocessing=Preprocessing(size=SIZE), epochs=3, seed=0, threads=1, device="cpu")
    return Progress(job, "t", None, lambda report: None)


def test_the_next_epoch_trains_while_a_checkpoint_is_put(tmp_path: Path) -> None:
    store = Waiting(open_store(str(tmp_path)).root)
    progress = progress_in(store)

    def on_epoch(report: EpochReport, state: EpochState) -> bool:
        if report.epoch == 2:
            Waiting.begun.set()
        return progress.epoch(report, state)

    fit(small_spec(), FILMS, VAL, SETTINGS, on_epoch=on_epoch)
    progress.settle()
    kept = load_checkpoint(open_store(str(tmp_path)), "t")
    assert kept is not None
    assert kept.epoch == 3


def test_a_checkpoint_that_cannot_be_put_is_told_after_the_next_epoch(tmp_path: Path) -> None:
    progress, epochs = progress_in(Full(open_store(str(tmp_path)).root)), []

    def on_epoch(report: EpochReport, state: EpochState) -> bool:
        epochs.append(report.epoch)
        return progress.epoch(report, state)

    with pytest.raises(StorageError, match="no space left"):
        fit(small_spec(), FILMS, VAL, SETTINGS, on_epoch=on_epoch)
    assert epochs == [1, 2]


def test_a_continued_trial_is_not_judged_by_the_limit_of_the_latency_again(tmp_path: Path) -> None:
    job = TrialJob(
        study=open_store(str(tmp_path)),
        preprocessing=Preprocessing(size=SIZE),
        epochs=3,
        seed=0,
        threads=1,
        device="cpu",
        most_ms=5.0,
    )
    begun = Checkpoint(tensors={}, facts={"seconds": 1.0, "history": [{"epoch": 1, "val_auc": 0.9}]})
    told: list[bool] = []
    for earlier, milliseconds in ((None, 4.0), (None, 6.0), (begun, 6.0)):
        progress = Progress(job, "t", earlier, lambda report: None)
        told.append(progress.is_fast_enough(small_spec(), partial(_instead, milliseconds)))
    assert told == [True, False, True]
