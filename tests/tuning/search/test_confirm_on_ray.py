"""Folds as Ray tasks come to what they come to in one process."""

from pathlib import Path

import numpy as np
import pytest

from models.spec import Preprocessing
from pipelines.ingest.dataset import load_films, read_dataset_info
from tests.tuning.films import SIZE, write_dataset
from tuning.search.confirm_on_ray import as_ray_tasks
from tuning.study.confirm import FoldJob, deal_train, one_after_another, recipe_of


@pytest.mark.usefixtures("ray_session")
def test_tasks_of_ray_give_what_one_process_gives(tmp_path: Path) -> None:
    uri = str(tmp_path / "dataset")
    write_dataset(uri, films=140)
    sides = load_films(uri, "train"), load_films(uri, "val")
    dealt = deal_train(*sides, read_dataset_info(uri), uri, folds=2, seed=1)
    recipe = recipe_of(
        {"family": "mlp", "mlp_width": 8, "batch_size": 20}, preprocessing=Preprocessing(size=SIZE), epochs=1, seed=1
    )
    jobs = [FoldJob(trial_id="some", fold=fold, recipe=recipe) for fold in (1, 2)]
    here = {one.fold: one.probability for one in one_after_another(jobs, dealt)}
    there = {one.fold: one.probability for one in as_ray_tasks({"CPU": 1.0}, at_most=1)(jobs, dealt)}
    assert set(there) == {1, 2}
    for fold, probability in here.items():
        np.testing.assert_allclose(there[fold], probability, atol=1e-5)
