"""The page of a study: figures, leaderboard, the winner's bundle, and files that cannot be read."""

from pathlib import Path
from typing import Any

import pytest

from cluster.report import write_report
from pipelines.errors import InputError
from pipelines.pages.frame import interval
from pipelines.storage import Store, open_store
from tests.pipelines.pages.samples import (
    HOSTILE,
    trial,
    write_bundle,
    write_study,
    written_report,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "it"))


def test_progress_and_leaderboard(store: Store, tmp_path: Path) -> None:
    diverged = trial(3, status="failed", error="the loss is nan; lower the learning rate")
    baseline = trial(0, 0.5, model="majority", kind="baseline", parameters='{"family": "majority"}')
    write_study(store, [trial(2, 0.91, status="pruned"), diverged, trial(1, 0.9, 0.9754), baseline])
    page = written_report(store, tmp_path / "study.html")
    assert "Trials 4 2 complete, 1 pruned, 1 failed" in page.text
    assert "Best AUC 0.9754 trial 1, cnn" in page.text
    assert "Time of all trials 4 min 00 s" in page.text
    assert "From first start to last end 4 min 00 s" in page.text
    assert "1 1 cnn 0.9754 2 1 min 00 s complete cnn_depth 3 · learning_rate 0.002718" in page.text
    assert "2 2 cnn 0.9100 1 1 min 00 s pruned" in page.text
    assert "3 0 majority (baseline) 0.5000" in page.text
    assert "3 cnn failed 1 min 00 s the loss is nan; lower the learning rate" in page.text
    assert page.charts[:2] == ["AUC of each trial; the best so far ends at 0.9754"] * 2
    assert "Computed when the search ends." in page.text


def test_the_promoted_bundle(store: Store, tmp_path: Path) -> None:
    write_study(store, [trial(0, 0.97)])
    bundle = write_bundle(store.path / "best")
    page = written_report(store, tmp_path / "study.html")
    assert interval(bundle.evaluation["val"]["metrics"]["auc"]) in page.text
    assert f"Bundle of the winner: {store.root}/best , model {bundle.model_id}" in page.text


def test_hostile_text_is_text(store: Store, tmp_path: Path) -> None:
    parameters = '{"family": "cnn", "note": "' + HOSTILE + '"}'
    failed = trial(1, status="failed", error=HOSTILE, parameters=parameters)
    write_study(store, [trial(0, 0.9, 0.8, model=HOSTILE, parameters=parameters), failed])
    assert written_report(store, tmp_path / "study.html").text.count(HOSTILE) >= 5


@pytest.mark.parametrize(
    ("trials", "says"),
    [
        (None, "No trial has ended yet."),
        ([trial(0, status="failed", error="out of memory")], "No trial has a result yet."),
    ],
)
def test_a_study_without_a_result(store: Store, tmp_path: Path, trials: list[dict[str, Any]] | None, says: str) -> None:
    write_study(store, trials)
    page = written_report(store, tmp_path / "study.html")
    assert says in page.text
    assert page.charts == []


def test_many_and_hopeless_trials(store: Store, tmp_path: Path) -> None:
    good = [trial(n, 0.95, 0.96 + n / 10_000, seconds=4000.0) for n in range(40)]
    lost = trial(40, 0.31, status="pruned", seconds=30_000.0)
    write_study(store, [*good, lost])
    page = written_report(store, tmp_path / "study.html")
    assert "Trials 41 40 complete, 1 pruned, 0 failed" in page.text
    assert "Core-hours spent" in page.text
    assert "The other 21 trials" in page.text


@pytest.mark.parametrize(
    ("key", "content"),
    [("study.json", b"{"), ("study.json", b"[]"), ("trials.parquet", b"not a table"), ("findings.json", b"{")],
)
def test_broken_files_are_named(store: Store, tmp_path: Path, key: str, content: bytes) -> None:
    write_study(store, [trial(0, 0.9)])
    store.put(key, content)
    with pytest.raises(InputError, match=key):
        write_report(store.root, str(tmp_path / "study.html"))
