import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuning.training.schedule import films_of_epoch, mixing_generator, rate, settled
from tuning.training.settings import Schedule, TrainSettings


def rates(schedule: Schedule, steps: int, **changes: float) -> list[float]:
    settings = TrainSettings(schedule=schedule, **changes)  # type: ignore[arg-type]
    return [rate(settings, step, steps) for step in range(steps)]


@given(steps=st.integers(1, 300), warm_up=st.floats(0, 0.99))
@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant"])
def test_rates_rise_to_the_highest_and_stay_above_zero(schedule: Schedule, steps: int, warm_up: float) -> None:
    found = rates(schedule, steps, warm_up=warm_up)
    assert all(0 < value <= 1 for value in found)
    peak = found.index(max(found))
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    if schedule == "constant":
        assert found[-1] == 1


def test_rates_of_each_schedule() -> None:
    rising = [(step + 1) / 10 for step in range(10)]
    assert rates("one_cycle", 40)[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    cosine = rates("cosine", 100, warm_up=0.1)
    assert cosine[:10] == pytest.approx(rising)
    falling = 0.5 * (1 + np.cos(np.pi * np.arange(1, 91) / 91))
    assert cosine[10:] == pytest.approx(falling.tolist())
    assert rates("constant", 100, warm_up=0.1) == pytest.approx([*rising, *[1.0] * 90])
    assert rates("constant", 5, warm_up=0) == [1.0] * 5


@given(epochs=st.integers(1, 200))
def test_a_rate_has_settled_when_it_is_down_to_half(epochs: int) -> None:
    steps, one_cycle = 1000 * epochs, TrainSettings(schedule="one_cycle")
    epoch = settled(epochs)
    assert epoch > epochs / 4  # it rises until then
    assert rate(one_cycle, 1000 * epoch - 1, steps) < 0.501
    assert epoch == 1 or rate(one_cycle, 1000 * (epoch - 1) - 1, steps) > 0.499


@given(films=st.integers(2, 200), batch=st.integers(2, 40), accumulate=st.integers(1, 4), epoch=st.integers(1, 9))
def test_an_epoch_takes_each_film_once_at_most_and_every_step_is_whole(
    films: int, batch: int, accumulate: int, epoch: int
) -> None:
    settings = TrainSettings(batch_size=batch, accumulate=accumulate)
    steps = films_of_epoch(settings, np.zeros(films, dtype=np.int64), epoch)
    seen = np.concatenate(steps)
    assert len(np.unique(seen)) == len(seen) == min(films, len(steps) * batch * accumulate)
    if films >= batch * accumulate:
        assert {len(step) for step in steps} == {batch * accumulate}


@given(counts=st.lists(st.integers(1, 60), min_size=2, max_size=4), epoch=st.integers(1, 5))
def test_balanced_sampling_shows_all_classes_alike(counts: list[int], epoch: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    settings = TrainSettings(batch_size=max(2, len(labels)), sampling="balanced")
    seen = np.concatenate(films_of_epoch(settings, labels, epoch))
    shown = np.bincount(labels[seen], minlength=len(counts))
    assert shown.max() - shown.min() <= 1
    assert shown.sum() == len(labels)
    for label in range(len(counts)):
        often = np.bincount(seen, minlength=len(labels))[labels == label]
        assert often.max() - often.min() <= 1


def test_orders_differ_by_epoch_and_seed_alone() -> None:
    labels = np.arange(64) % 2

    def order(epoch: int, seed: int = 0) -> bytes:
        return np.concatenate(films_of_epoch(TrainSettings(seed=seed), labels, epoch)).tobytes()

    assert order(1) == order(1)
    assert len({order(1), order(2), order(1, seed=1)}) == 3


def test_each_step_mixes_in_its_own_way() -> None:
    settings = TrainSettings()
    streams = [mixing_generator(settings, epoch, step).random() for epoch in (1, 2) for step in range(3)]
    streams.append(mixing_generator(TrainSettings(seed=1), 1, 0).random())
    streams.append(np.random.default_rng((settings.seed, 1)).random())  # of the order of films
    assert len(set(streams)) == 8
    assert mixing_generator(settings, 1, 0).random() == streams[0]
