"""What came of a study is told from what its trials left, and its bundle says how it was chosen."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.films import Films
from models.spec import Preprocessing
from models.statistics.calibration import disease_log_odds
from models.statistics.metrics import auc
from pipelines.ingest.dataset import DatasetInfo, load_films, read_dataset_info
from pipelines.storage import Store, open_store
from tests.tuning.films import SIZE, write_dataset
from tests.tuning.study.test_store import INFO, record
from tuning.spaces.space import to_plan
from tuning.study.findings import Findings, conclude
from tuning.study.records import TrialRecord
from tuning.study.store import FINDINGS, begin_study
from tuning.study.trial_files import load_logits, save_logits, save_weights, weights_key
from tuning.study.winner import promote_best
from tuning.training.judged_films import originals
from tuning.training.loop import fit
from tuning.training.objectives import LOG_SCORE


@dataclass(frozen=True)
class Study:
    store: Store
    info: DatasetInfo
    train: Films
    val: Films
    records: list[TrialRecord]
    found: Findings


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Three perceptrons and a trial of a version that kept no predictions."""
    folder = tmp_path_factory.mktemp("findings")
    write_dataset(str(folder / "dataset"), films=280)
    info = read_dataset_info(str(folder / "dataset"))
    train, val = (load_films(str(folder / "dataset"), split) for split in ("train", "val"))
    store = open_store(str(folder / "study"))
    begin_study(store, INFO, resume=False)
    records = []
    for number, side in enumerate((32, 16, 8)):
        parameters: dict[str, Any] = {"family": "mlp", "mlp_side": side, "mlp_width": 16, "batch_size": 10}
        plan = to_plan(
            parameters, preprocessing=Preprocessing(size=SIZE), epochs=4, seed=number, threads=1, device="cpu"
        )
        fitted = fit(plan.spec, train, val, plan.training)
        trial = record(
            number, fitted.best.val_auc, parameters=parameters, history=[vars(epoch) for epoch in fitted.history]
        )
        save_weights(store, trial.trial_id, fitted.state_dict)
        save_logits(store, trial.trial_id, fitted.val_logits)
        records.append(trial)
    records += [record(3, 0.41), record(4, None, "failed")]
    found = conclude(store, records, INFO, dataset=info, val=val)
    return Study(store, info, train, val, records, found)


def test_each_trial_is_judged_by_its_own_predictions(study: Study) -> None:
    assert set(study.found.trials) == {"trial0", "trial1", "trial2"}
    for trial in study.records[:3]:
        own = disease_log_odds(load_logits(study.store, trial.trial_id))
        judged = study.found.trials[trial.trial_id]
        assert judged.auc["value"] == trial.auc == auc(study.val.labels, own)
        assert judged.auc["low"] < judged.auc["value"] < judged.auc["high"]
    best = max(study.records[:3], key=lambda trial: trial.auc or 0)
    assert [name for name, judged in study.found.trials.items() if judged.p_value is None] == [best.trial_id]
    assert sum(judged.chosen or 0 for judged in study.found.trials.values()) == pytest.approx(1)


def test_the_choice_and_the_ensemble_are_told(study: Study) -> None:
    selection, ensemble = study.found.selection, study.found.ensemble
    assert selection is not None
    assert (selection.trials, selection.films, selection.top) == (3, len(study.val), 1)
    assert selection.auc == max(trial.auc or 0 for trial in study.records)
    assert ensemble is not None
    assert set(ensemble.members) <= set(study.found.trials)
    assert ensemble.auc["value"] > selection.auc
    assert ensemble.milliseconds > ensemble.single_milliseconds > 0
    assert study.found.importance is None, "three trials are too few"
    short = study.found.in_short()
    assert short["auc_elsewhere"] == selection.elsewhere
    assert short["ensemble"]["cost"] > 1
    assert short["ensemble"]["low"] <= short["ensemble"]["gain"] <= short["ensemble"]["high"]


def test_it_stands_at_the_study(study: Study) -> None:
    assert json.loads(study.store.get(FINDINGS)) == json.loads(json.dumps(study.found.to_json()))


def test_the_bundle_says_how_it_was_chosen(study: Study, tmp_path: Path) -> None:
    _, bundle = promote_best(
        study.store,
        study.records,
        INFO,
        dataset=study.info,
        train=study.train,
        val=study.val,
        optimism=study.found.selection,
    )
    assert study.found.selection is not None
    told = {"by": "auc", "trials": 5, "results": 4, **study.found.selection.to_json()}
    assert bundle.lineage["search"] == bundle.evaluation["val"]["selection"] == told
    card = (bundle.folder / "card.html").read_text()
    assert "choose this model among 4 trials of a search, so its figures here are optimistic" in card
    assert f"had AUC {study.found.selection.elsewhere:.4f} on the other half" in card


def test_a_choice_among_the_most_robust_counts_the_few_best(study: Study) -> None:
    found = conclude(study.store, study.records, INFO, dataset=study.info, val=study.val, select="robust")
    assert found.selection is not None
    assert found.selection.top == 3, "as many as there are, up to five"
    assert found.selection.auc == pytest.approx(np.mean([trial.auc for trial in study.records[:3]]))


def test_the_choice_of_a_search_for_the_log_score_is_by_copies_too(study: Study, tmp_path: Path) -> None:
    """The trial that was first by films and copies has copies that are recognised, the other's are guesses."""
    labels = study.val.labels
    of = originals(labels, copies=True)
    rng = np.random.default_rng(0)
    store = open_store(str(tmp_path))
    objectives = replace(INFO, settings={**INFO.settings, "objectives": [LOG_SCORE]})
    records, odds = [], []
    for number, (noise, log_score) in enumerate(((0.8, -0.1), (0.5, -0.3))):
        own = 2.0 * labels + noise * rng.normal(size=len(labels))
        odds.append(own)
        whole = own[of]
        if number == 1:
            whole[len(labels) :] = rng.normal(size=len(of) - len(labels))
        save_logits(store, f"trial{number}", np.stack([-whole, whole], axis=1).astype(np.float32) / 2)
        network = weights_key(f"trial{number}")
        store.put(network, study.store.get(network))
        records.append(replace(study.records[number], auc=auc(labels, own), objective=log_score))
    assert auc(labels, odds[1]) > auc(labels, odds[0])
    found = conclude(store, records, objectives, dataset=study.info, val=study.val)
    assert found.selection is not None
    assert found.selection.auc == auc(labels, odds[0])
    assert (found.trials["trial0"].chosen or 0) > 0.9


def test_a_study_that_left_no_predictions(study: Study, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    found = conclude(store, study.records, INFO, dataset=study.info, val=study.val)
    assert (found.trials, found.selection, found.ensemble) == ({}, None, None)
    assert found.in_short() == {"auc_elsewhere": None, "ensemble": None, "confirmed": []}
    save_logits(store, "trial0", np.zeros((3, 2), dtype=np.float32))
    assert conclude(store, study.records, INFO, dataset=study.info, val=study.val).trials == {}, "of other films"


def test_too_few_patients_to_halve(study: Study) -> None:
    ours = np.array(["one patient", "another"])[study.val.labels]
    found = conclude(study.store, study.records, INFO, dataset=study.info, val=replace(study.val, patients=ours))
    assert found.selection is None
    assert {judged.chosen for judged in found.trials.values()} == {None}
    assert found.ensemble is not None
    assert found.ensemble.gain is None
