"""The driver killed again and again at random moments of one night, then left alone."""

import random
from pathlib import Path

import pytest

from pipelines.results.query import ask
from pipelines.storage import open_store
from tests.integration.test_killed_driver import FILMS, check_finished_once, command, parts, run_and_kill

__all__ = ["command"]  # the fixture

ROUNDS = 4


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(3))
def test_a_night_survives_any_number_of_kills(command: list[str], tmp_path: Path, seed: int) -> None:
    scores = open_store(str(tmp_path / "scores"))
    moments = random.Random(seed)
    for _ in range(ROUNDS):
        reached = parts(scores)
        run_and_kill(command, scores, after=reached + moments.randint(1, FILMS // 4 // (ROUNDS + 1)))
    (unfinished,) = ask(scores.root, "SELECT run_id FROM runs").to_pylist()
    check_finished_once(command, scores, unfinished["run_id"])
