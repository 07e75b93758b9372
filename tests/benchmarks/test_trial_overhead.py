"""What a trial costs beside its epochs: everything between one trial's end and the next one's that is not an epoch."""

import itertools
import statistics
from pathlib import Path

import pytest

from pipelines.storage import open_store
from tests.benchmarks.measured import record
from tests.tuning.films import SIZE, write_dataset
from tuning.search.driver import search
from tuning.search.settings import SearchSettings
from tuning.study.store import read_trials

TRIALS, EPOCHS = 22, 3
MOST = 0.5
"""Seconds."""


@pytest.mark.bench
@pytest.mark.usefixtures("ray_of_this_machine")
def test_a_trial_costs_half_a_second_at_most(tmp_path: Path) -> None:
    """One trial at a time; the first, for which a process starts and imports torch, is left out."""
    dataset, out = str(tmp_path / "dataset"), str(tmp_path / "study")
    write_dataset(dataset)
    settings = SearchSettings(
        trials=TRIALS, epochs=EPOCHS, grace_epochs=1, families=("cnn",), resolutions=(SIZE,), max_concurrent=1
    )
    search(dataset, out, settings)
    trials = sorted(read_trials(open_store(out)), key=lambda trial: trial.finished_at)
    beside = [
        (trial.finished_at - before.finished_at).total_seconds() - sum(epoch["seconds"] for epoch in trial.history)
        for before, trial in itertools.pairwise(trials)
    ]
    inside = [trial.seconds - sum(epoch["seconds"] for epoch in trial.history) for trial in trials[1:]]
    middle, most = statistics.median(beside), max(beside)
    text = (
        f"{len(beside)} trials after the first, {EPOCHS} epochs at most: {middle:.2f} s a trial beside its epochs "
        f"({most:.2f} s at most), {statistics.median(inside):.2f} s of them in the trial itself "
        f"(its weights and checkpoints put, its network built), the others in Ray Tune"
    )
    print(f"\n{text}")
    record("trial-overhead", text)
    assert middle <= MOST
