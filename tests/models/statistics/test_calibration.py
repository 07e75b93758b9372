import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from models.errors import InputError, RayscanError
from models.networks.classifier import Calibrate
from models.statistics.calibration import (
    CALIBRATION_METHODS,
    TEMPERATURES,
    Calibration,
    CalibrationMethod,
    called_positive,
    disease_log_odds,
    fit_calibration,
    fit_temperature,
)
from models.statistics.metrics import confusion


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


def films(seed: int, classes: int = 2, count: int = 4000) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Logits of a model that is too sure of itself and calls too many ill, and the truth."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(size=(count, classes)) * 2
    shares = np.exp(honest) / np.exp(honest).sum(axis=1, keepdims=True)
    labels = (rng.random((count, 1)) > np.cumsum(shares, axis=1)).sum(axis=1).clip(max=classes - 1)
    spoilt = honest * 1.7
    spoilt[:, 0] -= 1.2
    return spoilt, labels


def log_loss(calibration: Calibration, logits: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
    chance = 1 - calibration.probabilities(logits.astype(np.float32))[:, 0]
    return float(-np.log(np.where(labels != 0, chance, 1 - chance).clip(1e-7)).mean())


def test_platt_finds_the_slope_and_the_offset_again() -> None:
    found = fit_calibration(*films(0), "platt")
    assert found.temperature == pytest.approx(1.7, rel=0.1)
    assert found.bias == pytest.approx(-1.2 / 1.7, abs=0.12)


@pytest.mark.parametrize("classes", [2, 3])
def test_each_map_is_better_than_none_on_other_films_and_keeps_their_order(classes: int) -> None:
    fitted_on, tested_on = films(1, classes), films(2, classes)
    plain = Calibration(temperature=1.0, operating_points={"balanced": 0.5})
    losses = {method: log_loss(fit_calibration(*fitted_on, method), *tested_on) for method in CALIBRATION_METHODS}
    assert max(losses.values()) < log_loss(plain, *tested_on)
    assert max(losses["platt"], losses["isotonic"]) < losses["temperature"], "which cannot move the middle"
    for method in CALIBRATION_METHODS:
        found = fit_calibration(*fitted_on, method).probabilities(tested_on[0].astype(np.float32))
        assert found.sum(axis=1) == pytest.approx(np.ones(len(found)), abs=1e-5)
        odds = disease_log_odds(tested_on[0] / fit_calibration(*fitted_on, method).temperature)
        assert (np.diff(1 - found[np.argsort(odds), 0]) > -1e-6).all(), method


@settings(deadline=None, max_examples=60)
@given(
    logits=arrays.arrays(np.float32, (9, 3), elements=st.floats(-12, 12, width=32)),
    temperature=st.floats(0.3, 5),
    bias=st.floats(-3, 3),
    steps=st.lists(st.tuples(st.floats(0.05, 4), st.floats(0.05, 4)), max_size=6),
)
def test_the_module_in_the_graph_is_the_same_map(
    logits: npt.NDArray[np.float32], temperature: float, bias: float, steps: list[tuple[float, float]]
) -> None:
    curve = tuple((float(x) - 4, float(y) - 5) for x, y in np.cumsum(np.array(steps).reshape(-1, 2), axis=0))
    points = {"balanced": 0.5}
    calibration = Calibration(temperature=temperature, operating_points=points, bias=bias, curve=curve)
    in_graph = torch.softmax(Calibrate(calibration)(torch.tensor(logits)), dim=1).numpy()
    assert in_graph == pytest.approx(calibration.probabilities(logits), abs=2e-5)
    assert Calibration.from_json(calibration.to_json()) == calibration


@pytest.mark.parametrize("method", CALIBRATION_METHODS)
def test_films_that_separate_perfectly_are_calibrated_too(method: CalibrationMethod) -> None:
    labels = np.repeat([0, 1], 30)
    logits = np.stack([-8.0 * labels, 8.0 * labels - 4], axis=1)
    found = fit_calibration(logits, labels, method).probabilities(logits.astype(np.float32))
    assert np.isfinite(found).all()
    assert (found[labels == 1, 1] > 0.9).all()
    assert (found[labels == 0, 0] > 0.9).all()


def test_what_cannot_be_calibrated_is_refused() -> None:
    with pytest.raises(InputError, match="with and without disease"):
        fit_calibration(np.zeros((3, 2)), np.ones(3, dtype=int), "platt")
    with pytest.raises(InputError, match="unknown calibration 'beta'; choose temperature, platt, isotonic"):
        fit_calibration(np.zeros((2, 2)), np.array([0, 1]), "beta")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must rise"):
        Calibration(temperature=1.0, operating_points={"balanced": 0.5}, curve=((0.0, 1.0), (1.0, 1.0)))


def test_log_odds_of_disease_hold_where_probabilities_round_to_one() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (50, 4)).astype(np.float32)
    none = torch.softmax(torch.from_numpy(logits).double(), dim=1)[:, 0].numpy()
    np.testing.assert_allclose(disease_log_odds(logits), np.log((1 - none) / none), rtol=1e-4, atol=1e-4)
    extreme = np.array([[-500, 400, -900], [-500, 401, -900], [900, -900, -900]], dtype=np.float32)
    np.testing.assert_allclose(disease_log_odds(extreme), [900, 901, -1800 + np.log(2)])
    two = logits[:, :2]
    assert np.array_equal(disease_log_odds(two), two[:, 1] - two[:, 0])
