"""A search as a person at a terminal sees it."""

import io
import math
import time

import pytest
from rich.console import Console

from tuning.search.board import MOST_ROWS, Board, Running, Standing, picture

STANDING = Standing(
    running=(
        Running(number=7, model="cnn", epoch=2, epochs=8, auc=0.98765, seconds=65.4),
        Running(number=8, model="mlp", epoch=0, epochs=8, auc=None, seconds=1.0),
    ),
    counts={"complete": 4, "pruned": 2, "failed": 0},
    planned=20,
    best="0.9912, cnn, trial 3",
    seconds_left=3700.0,
)


def drawn(standing: Standing) -> list[list[str]]:
    out = io.StringIO()
    Console(file=out, width=100).print(picture(standing))
    return [line.split() for line in out.getvalue().splitlines() if line.strip()]


def test_what_runs_what_is_best_and_how_long_it_takes() -> None:
    head, first, second, below = drawn(STANDING)
    assert head == ["trial", "model", "epoch", "AUC", "time"]
    assert first == ["7", "cnn", "2/8", "0.9877", "0:01:05"]
    assert second == ["8", "mlp", "0/8", "0:00:01"]
    assert " ".join(below) == "6 of 20 trials · 2 pruned · best 0.9912, cnn, trial 3 · 1:01:40 left"


def test_before_anything_ended() -> None:
    none = Standing(running=(), counts={"complete": 0}, planned=5, best=None, seconds_left=None)
    assert " ".join(drawn(none)[-1]) == "0 of 5 trials · none ended yet"


def test_a_large_cluster_does_not_fill_the_screen() -> None:
    many = Standing(running=STANDING.running * 20, counts={"complete": 0}, planned=99, best=None, seconds_left=None)
    lines = drawn(many)
    assert len(lines) == 1 + MOST_ROWS + 1
    assert " ".join(lines[-1]) == f"{40 - MOST_ROWS} more under way · 0 of 99 trials · none ended yet"


def test_a_time_in_which_no_trial_can_end_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    board = Board((), planned=math.inf, deadline=time.monotonic() + 1800, metric="auc")
    board.expect("mlp", 10.0, 9)
    assert not caplog.records
    board.expect("cnn", 390.0, 9)
    board.expect("cnn", 390.0, 9)
    (record,) = caplog.records
    assert "at 390 s an epoch, 9 epochs of cnn take 58 minutes, and this search has 30" in record.message


def test_a_search_without_a_time_is_never_short_of_it(caplog: pytest.LogCaptureFixture) -> None:
    Board((), planned=5, deadline=math.inf, metric="auc").expect("cnn", 1e6, 9)
    assert not caplog.records
