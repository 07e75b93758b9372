"""A search on a cluster that starts with no worker nodes: it waits for them, says so, and gives them back."""

from pathlib import Path

import pytest

from tests.chaos.growing_cluster import ADDRESS, can_make_namespaces, watched_run
from tests.chaos.searches import Search
from tests.tuning.films import write_dataset

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(not can_make_namespaces(), reason="only root may make the namespaces it has to run in"),
]


def test_a_search_takes_the_nodes_it_can_get_and_gives_them_back(rayscan_command: str, tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    write_dataset(dataset)
    search = Search(
        rayscan=rayscan_command,
        dataset=dataset,
        study=tmp_path / "study",
        trials=8,
        epochs=2,
        family="mlp",
        # the cluster's GPUs are invented
        options=("--address", ADDRESS, "--gpus-per-trial", "0"),
    )
    seen = watched_run(search.command, search.environment, tmp_path)
    assert seen.code == 0, seen.output
    search.assert_whole()
    assert "8 trials to run, 4 at a time, each on {'CPU': 1.0}" in seen.output
    # As one trial follows another, Ray Tune may wish for a place too many, for which a GPU node has been seen to start.
    assert max(look.nodes for look in seen.looks) >= 2
    assert seen.released is not None
    first = next(look.seconds for look in seen.looks if look.nodes)
    print(f"first node after {first} s; all gone {seen.released} s after the end")
