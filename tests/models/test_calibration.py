import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from models.calibration import TEMPERATURES, Calibration, called_positive, fit_temperature, operating_points
from models.errors import InputError, RayscanError
from models.metrics import confusion


def nll(logits: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], temperature: float) -> float:
    scaled = logits / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    log_probability = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return float(-log_probability[np.arange(len(labels)), labels].mean())


@pytest.mark.parametrize("truth", [0.5, 1.0, 3.0])
def test_temperature_is_found_again(truth: float) -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(20_000, 2)) * 1.5
    shares = np.exp(honest) / np.exp(honest).sum(axis=1, keepdims=True)
    labels = (rng.random(20_000) < shares[:, 1]).astype(np.int64)
    assert fit_temperature(honest * truth, labels) == pytest.approx(truth, rel=0.05)


@settings(deadline=None)
@given(
    logits=arrays.arrays(np.float64, (12, 2), elements=st.floats(-20, 20)),
    labels=arrays.arrays(np.int64, 12, elements=st.integers(0, 1)),
)
def test_temperature_never_raises_the_loss(logits: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> None:
    temperature = fit_temperature(logits, labels)
    assert TEMPERATURES[0] * 0.999 <= temperature <= TEMPERATURES[1] * 1.001
    assert nll(logits, labels, temperature) <= nll(logits, labels, 1.0) + 1e-9


@st.composite
def scored(draw: st.DrawFn) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    labels = draw(st.lists(st.integers(0, 1), min_size=2, max_size=60).filter(lambda x: 0 < sum(x) < len(x)))
    level = st.floats(0, 1, width=32) | st.sampled_from([0.0, 0.5, 1.0])
    return np.array(labels), np.array(
        draw(st.lists(level, min_size=len(labels), max_size=len(labels))), dtype=np.float32
    )


@settings(deadline=None)
@given(scored())
def test_operating_points_keep_their_promise_and_are_the_best_that_do(
    case: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]],
) -> None:
    labels, probability = case
    points = operating_points(labels, probability)

    def rates(threshold: float) -> tuple[float, float]:
        called = probability.astype(np.float64) >= threshold
        return float(called[labels == 1].mean()), float((~called)[labels == 0].mean())

    every = [rates(float(level)) for level in np.unique(probability)] + [(0.0, 1.0)]
    assert rates(points["rule_out"])[0] >= 0.98
    assert rates(points["rule_out"])[1] == max(specificity for sensitivity, specificity in every if sensitivity >= 0.98)
    assert rates(points["rule_in"])[1] >= 0.98
    assert rates(points["rule_in"])[0] == max(sensitivity for sensitivity, specificity in every if specificity >= 0.98)
    assert sum(rates(points["balanced"])) == pytest.approx(max(map(sum, every)))
    for threshold in points.values():
        in_single = probability >= np.float32(threshold)
        assert (in_single == (probability.astype(np.float64) >= threshold)).all()


def test_thresholds_stand_between_films() -> None:
    points = operating_points(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9]))
    assert points == pytest.approx({"rule_out": 0.5, "balanced": 0.5, "rule_in": 0.5})


def test_operating_points_need_both_classes() -> None:
    with pytest.raises(InputError, match="both classes"):
        operating_points(np.ones(3, dtype=int), np.arange(3) / 3)


def test_json_round_trip_and_refusals() -> None:
    calibration = Calibration(temperature=1.25, operating_points={"balanced": 0.5, "rule_out": 0.1})
    assert Calibration.from_json(calibration.to_json()) == calibration
    assert calibration.threshold == 0.5
    with pytest.raises(InputError, match="not a calibration"):
        Calibration.from_json({"temperature": 1})
    with pytest.raises(InputError, match="default operating point"):
        Calibration(temperature=1, operating_points={"rule_in": 0.9})


def test_probabilities_are_the_softmax_of_scaled_logits() -> None:
    calibration = Calibration(temperature=2, operating_points={"balanced": 0.5})
    probability = calibration.probabilities(np.array([[0, 2], [500, -500]], dtype=np.float32))
    assert probability.dtype == np.float32
    assert probability[:, 1] == pytest.approx([1 / (1 + np.exp(-1)), 0])


@given(
    arrays.arrays(np.float32, st.integers(1, 20), elements=st.floats(0, 1, width=32)),
    st.floats(0, 1),
    st.integers(-2, 2),
)
def test_evaluation_and_scoring_decide_alike(
    probability: npt.NDArray[np.float32], threshold: float, steps: int
) -> None:
    """Whatever the width they come in, and however close the threshold lies to a film."""
    close = float(probability[0]) + steps * 1e-9
    for at in (threshold, close):
        called = called_positive(probability, at)
        assert (called == called_positive(probability.astype(np.float64), at)).all()
        assert [bool(called_positive(float(p), at)) for p in probability] == called.tolist()
        labels = np.ones(len(probability), dtype=np.int64)
        assert confusion(labels, probability, at)[0] == int(called.sum())


def test_what_is_no_number_is_not_called_negative() -> None:
    with pytest.raises(RayscanError, match="probability of 2 of 3 films"):
        called_positive(np.array([0.5, np.nan, np.nan], dtype=np.float32), 0.5)
    with pytest.raises(RayscanError):
        called_positive(float("nan"), 0.5)
    assert called_positive(np.empty(0), 0.5).shape == (0,)
