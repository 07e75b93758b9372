"""What a study keeps on storage, what it refuses, and how its winner becomes a bundle."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.errors import InputError, RayscanError
from models.spec import Preprocessing
from pipelines import contracts
from pipelines.errors import IncompleteError, NotFoundError, StorageError
from pipelines.ingest.dataset import load_films, read_dataset_info
from pipelines.storage import Store, open_store
from tests.servers import S3Server
from tests.tuning.films import SIZE, write_dataset
from tuning.spaces.space import to_plan
from tuning.spaces.space_file import read_space
from tuning.study.failure import brief
from tuning.study.records import (
    StartedTrial,
    StudyInfo,
    TrialKind,
    TrialRecord,
    best_trial,
    count_statuses,
    leaderboard,
)
from tuning.study.store import begin_study, read_study, read_trials, unfinished_trials, write_trials
from tuning.study.trial_files import load_weights, save_weights
from tuning.study.winner import promote_best
from tuning.training.loop import EpochReport, TrainSettings, fit

INFO = StudyInfo(
    dataset="s3://films/dataset",
    fingerprint="abc",
    space=read_space("default").to_json(),
    settings={"epochs": 3, "cpus_per_trial": 1},
)


def record(number: int, auc: float | None, status: Any = "complete", **values: Any) -> TrialRecord:
    return TrialRecord(
        **{
            "trial_id": f"trial{number}",
            "number": number,
            "status": status,
            "model": "mlp",
            "parameters": {"family": "mlp", "learning_rate": 0.1 + 0.2, "mlp_width": 64},
            "auc": auc,
            "epochs": 1,
            "history": [{"epoch": 1, "train_loss": 0.7, "val_auc": auc, "val_loss": 0.6, "seconds": 0.1}],
            "seconds": 1.5,
            "seed": 3,
            "finished_at": datetime(2026, 11, 20, 12, tzinfo=UTC),
        }
        | values
    )


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "study"))
    server: S3Server = request.getfixturevalue("s3")
    return open_store(f"{server.bucket()}/study")


def test_what_is_written_is_read(store: Store) -> None:
    assert begin_study(store, INFO, resume=False) == []
    records = [record(0, 0.5), record(1, None, "failed", error="RuntimeError: no"), record(2, 0.75, "pruned")]
    write_trials(store, records[::-1])
    assert read_study(store) == INFO
    assert read_trials(store) == records
    assert begin_study(store, INFO, resume=True) == records
    weights = {"a": torch.randn(3, 2), "b": torch.arange(4)}
    save_weights(store, "trial2", weights)
    loaded = load_weights(store, "trial2")
    assert set(loaded) == set(weights)
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_a_study_from_before_trials_had_a_kind_is_read(tmp_path: Path) -> None:
    """Baselines, probes and finals were marks among the parameters then."""
    store = open_store(str(tmp_path))
    kinds: list[TrialKind] = ["baseline", "probe", "final", "search"]
    records = [record(number, 0.5, kind=kind) for number, kind in enumerate(kinds)]
    marked = [one.parameters if one.kind == "search" else {**one.parameters, one.kind: True} for one in records]
    rows = [one.to_row() | {"parameters": json.dumps(old)} for one, old in zip(records, marked, strict=True)]
    table = pa.Table.from_pylist(rows, schema=contracts.TRIALS).drop_columns(["kind"])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    store.put("trials.parquet", sink.getvalue().to_pybytes())
    assert read_trials(store) == records
    started = {"trial_id": "t", "number": 9, "seed": 3, "parameters": {"family": "mlp", "final": True}}
    store.put("trials/t/trial.json", json.dumps(started).encode())
    expected = StartedTrial(trial_id="t", number=9, seed=3, parameters={"family": "mlp"}, kind="final")
    assert unfinished_trials(store, records) == [expected]


def test_a_kind_of_a_later_version_is_refused(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    write_trials(store, [record(0, 0.5, kind="sequel")])
    with pytest.raises(InputError, match=r"trials\.parquet is not a table of trials of this version .* 'sequel'"):
        read_trials(store)


def test_a_folder_with_anything_in_it_is_refused(store: Store) -> None:
    store.put("notes.txt", b"mine")
    with pytest.raises(InputError, match="--resume"):
        begin_study(store, INFO, resume=False)
    assert not store.exists("study.json")


def test_nothing_to_resume(store: Store) -> None:
    with pytest.raises(NotFoundError, match="no study"):
        begin_study(store, INFO, resume=True)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"fingerprint": "other"}, "fingerprint abc"),
        ({"space": read_space("cnn-grid").to_json()}, "search space"),
        ({"settings": {"epochs": 4, "cpus_per_trial": 1}}, "epochs 3"),
    ],
)
def test_a_study_of_something_else_is_not_resumed(tmp_path: Path, changed: dict[str, Any], what: str) -> None:
    store = open_store(str(tmp_path))
    begin_study(store, INFO, resume=False)
    with pytest.raises(InputError, match=what):
        begin_study(store, replace(INFO, **changed), resume=True)


def test_more_trials_or_another_dataset_address_may_be_resumed(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    begin_study(store, INFO, resume=False)
    moved = replace(INFO, dataset="gs://elsewhere", settings={**INFO.settings, "trials": 900})
    assert begin_study(store, moved, resume=True) == []


def test_a_broken_study_is_named(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("study.json", b"{}")
    with pytest.raises(InputError, match=r"study\.json is not a study"):
        read_study(store)


@given(st.lists(st.tuples(st.sampled_from(["complete", "pruned", "failed"]), st.none() | st.floats(0, 1)), max_size=12))
def test_the_leaderboard_is_ordered_and_holds_only_results(outcomes: list[tuple[Any, float | None]]) -> None:
    records = [record(number, auc, status) for number, (status, auc) in enumerate(outcomes)]
    ranked = leaderboard(records)
    assert all(row.status != "failed" and row.auc is not None for row in ranked)
    keys = [(-(row.auc or 0.0), row.number) for row in ranked]
    assert keys == sorted(keys)
    usable = [auc for status, auc in outcomes if status != "failed" and auc is not None]
    best = best_trial(records)
    assert (best.auc if best else None) == (max(usable) if usable else None)
    assert sum(count_statuses(records).values()) == len(records)


def test_the_winner_is_promoted_with_its_best_epoch(tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    write_dataset(dataset, films=70)
    store = open_store(str(tmp_path / "study"))
    begin_study(store, INFO, resume=False)
    train, val, info = load_films(dataset, "train"), load_films(dataset, "val"), read_dataset_info(dataset)
    parameters: dict[str, Any] = {"family": "mlp", "resolution": SIZE // 2, "mlp_width": 8, "batch_size": 10}
    plan = to_plan(parameters, preprocessing=Preprocessing(size=SIZE), epochs=3, seed=3, threads=1, device="cpu")
    fitted = fit(plan.spec, train, val, plan.training)
    save_weights(store, "trial1", fitted.state_dict)
    history = [vars(report) for report in fitted.history]
    winner = record(1, fitted.best.val_auc, parameters=parameters, history=history, epochs=3)
    records = [record(0, 0.0), winner]

    found, bundle = promote_best(store, records, INFO, dataset=info, train=train, val=val)
    assert found == winner
    assert bundle.spec == plan.spec
    assert bundle.lineage["trial_id"] == "trial1"
    assert bundle.lineage["best_epoch"] == fitted.best.epoch
    assert bundle.evaluation["val"]["metrics"]["auc"]["value"] == pytest.approx(fitted.best.val_auc, abs=1e-9)
    with torch.inference_mode():
        logits = bundle.classifier().logits(torch.tensor(val.pixels)).numpy()
    np.testing.assert_allclose(logits, fitted.val_logits, atol=1e-5)

    _, again = promote_best(store, records, INFO, dataset=info, train=train, val=val)
    assert again.model_id == bundle.model_id  # an unchanged winner keeps its identity

    store.delete("best/weights.safetensors")
    _, mended = promote_best(store, records, INFO, dataset=info, train=train, val=val, show_films=False)
    assert mended.lineage["trial_id"] == "trial1"
    assert "samples" in bundle.evaluation["val"]
    assert "samples" not in mended.evaluation["val"], "films stay out where they are not wanted"


def test_the_best_by_its_own_account_is_passed_over_where_it_fails_on_changed_films(tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    write_dataset(dataset, films=70)
    store = open_store(str(tmp_path / "study"))
    begin_study(store, INFO, resume=False)
    train, val, info = load_films(dataset, "train"), load_films(dataset, "val"), read_dataset_info(dataset)
    parameters: dict[str, Any] = {"family": "mlp", "resolution": SIZE, "mlp_width": 16, "batch_size": 10}
    plan = to_plan(parameters, preprocessing=Preprocessing(size=SIZE), epochs=8, seed=3, threads=1, device="cpu")
    honest = fit(plan.spec, train, val, plan.training)
    last = max(name for name in honest.state_dict if name.endswith(".weight"))
    upside_down = {name: -value if name == last else value for name, value in honest.state_dict.items()}
    save_weights(store, "trial0", upside_down)
    save_weights(store, "trial1", honest.state_dict)
    history = [vars(report) for report in honest.history]
    records = [
        record(number, auc, parameters=parameters, history=history)
        for number, auc in ((0, 1.0), (1, honest.best.val_auc))
    ]
    found, bundle = promote_best(store, records, INFO, dataset=info, train=train, val=val, select="robust")
    assert found == records[1]
    assert bundle.lineage["trial_id"] == "trial1"
    told = {one["trial"]: one["mean_balanced_accuracy"] for one in bundle.lineage["selection"]}
    assert told[1] > told[0]


def test_no_winner(tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    write_dataset(dataset, films=14)
    store = open_store(str(tmp_path / "study"))
    films = load_films(dataset, "val")
    data = {"dataset": read_dataset_info(dataset), "train": films, "val": films}
    with pytest.raises(IncompleteError, match="--resume"):
        promote_best(store, [], INFO, **data)
    with pytest.raises(RayscanError, match=r"every trial .* failed: ValueError: why"):
        promote_best(store, [record(0, None, "failed", error="ValueError: why")] * 2, INFO, **data)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("bad shape\nTraceback, patient Doe"), "ValueError: bad shape"),
        (StorageError("s3://ward/doe_jane.dcm: throttled"), "StorageError: <path>: throttled"),
        (InputError("/films/doe jane/x.dcm: gone; run it again"), "InputError: <path>: gone; run it again"),
        (InputError("/doe.csv, line 3: no label"), "InputError: <path>: no label"),
        (OSError("cannot open('/doe jane.png') twice"), "OSError: cannot open(<path>) twice"),
        (OSError("'/a/doe jane' -> '/b/doe jane': denied"), "OSError: <path> -> <path>: denied"),
        (OSError("cannot open '/archive/doe ja"), "OSError: cannot open <path>"),
        (
            InputError("it's of doe/jane d'or: odd; see s3://b/doe: odd"),
            "InputError: it's of <path>: odd; see <path>: odd",
        ),
        (OSError("cannot open '/archive/doe jane.png'"), "OSError: cannot open <path>"),
        (None, "the trial's process died"),
        (RuntimeError(), "RuntimeError: "),
    ],
)
def test_errors_are_kept_short_and_without_paths(error: BaseException | None, text: str) -> None:
    assert brief(error) == text


NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=30).filter(
    lambda name: not {": ", "; "} & {a + b for a, b in pairwise(name + " ")}
)
"""Of files; one with a colon or semicolon before a space cannot be told from the reason behind it."""
BEGINNINGS = ("/films/", "s3://ward/", "file:///films/ward 7/", "./", "../films/", "C:\\films\\")


@given(name=NAMES, beginning=st.sampled_from(BEGINNINGS), end=st.sampled_from((": ", "; ")))
def test_of_a_name_nothing_is_left_and_of_the_reason_everything(name: str, beginning: str, end: str) -> None:
    said = brief(StorageError(f"fetching {beginning}{name}{end}throttled after 6 tries"))
    assert said == f"StorageError: fetching <path>{end}throttled after 6 tries"


@given(name=NAMES, beginning=st.sampled_from(BEGINNINGS))
def test_a_name_in_quotes_ends_with_them(name: str, beginning: str) -> None:
    said = brief(OSError(f"cannot open {beginning + name!r} for reading: denied"))
    assert said == "OSError: cannot open <path> for reading: denied"


def test_long_errors_are_cut() -> None:
    assert len(brief(ValueError("x" * 1000))) == 200


def test_an_epoch_report_survives_the_table(tmp_path: Path) -> None:
    report = EpochReport(epoch=1, train_loss=1 / 3, val_auc=2 / 3, val_loss=math.pi, seconds=0.1)
    store = open_store(str(tmp_path))
    write_trials(store, [record(0, report.val_auc, history=[vars(report)])])
    assert EpochReport(**read_trials(store)[0].history[0]) == report
    assert TrainSettings().epochs > 0


def test_a_study_is_refused_without_loading_anything_heavy() -> None:
    """Preflight asks these modules before torch and Ray are loaded (`cluster/preflight.py`)."""
    modules = "tuning.study.store, tuning.search.settings, tuning.search.mirror_place"
    code = f"import sys, {modules}; print({{'torch', 'ray', 'pyarrow', 'optuna'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
