import numpy as np
import numpy.typing as npt
import pytest

from models.engines.agreement import compare, measure
from models.engines.engine import Inference
from models.engines.machine import this_machine
from models.statistics.calibration import Calibration
from tests.models.engines.test_choice import builder
from tests.models.synthetic import blob_films, small_spec

RNG = np.random.default_rng(0)
LABELS = np.arange(1000) % 2


def inference(disease: npt.NDArray[np.float32], distance: float = 1.0) -> Inference:
    classes = np.stack([1 - disease, disease], axis=1).astype(np.float32)
    return Inference(classes, np.full(len(disease), distance, dtype=np.float32))


def films(*, near: int = 0, moved_by: float = 0.0, at: float = 0.52) -> tuple[Inference, Inference]:
    """1,000 films well apart, `near` of them at a probability, and the same moved down by some."""
    before = np.where(LABELS == 1, 0.9, 0.1).astype(np.float32)
    before[1 : 2 * near : 2] = at
    after = before.copy()
    after[1 : 2 * near : 2] -= moved_by
    return inference(before), inference(after)


@pytest.mark.parametrize(
    ("near", "at", "moved_by", "allowed", "words"),
    [
        (0, 0.52, 0.0, True, ""),
        (10, 0.52, 0.04, True, ""),  # 1 % flips, close to the operating point
        (11, 0.52, 0.04, False, "11 of 1000 films change sides at balanced, the farthest 0.020"),
        (1, 0.58, 0.2, True, ""),
        (1, 0.62, 0.2, False, "1 of 1000 films change sides at balanced, the farthest 0.120"),
    ],
)
def test_flips_decide(near: int, at: float, moved_by: float, allowed: bool, words: str) -> None:
    found = compare(
        *films(near=near, moved_by=moved_by, at=at), LABELS, {"balanced": 0.5, "other": 0.99}, version="v 1"
    )
    written = found.to_json()
    assert written["allowed"] == allowed
    assert words in "; ".join(written["reasons"])
    assert written["flips"]["balanced"]["films"] == near
    assert written["flips"]["other"] == {"films": 0, "share": 0.0, "farthest": 0.0}
    assert written["max_dp"] == pytest.approx(moved_by, abs=1e-6)
    assert written["mean_dp"] == pytest.approx(moved_by * near / 1000, abs=1e-6)


def test_a_change_of_auc_refuses_though_no_film_changes_sides() -> None:
    before = np.where(LABELS == 1, 0.9, 0.1).astype(np.float32) + RNG.uniform(-0.05, 0.05, 1000).astype(np.float32)
    before[:40] = 0.2 + np.arange(40, dtype=np.float32) / 1000 * LABELS[:40]
    after = before.copy()
    after[:40] -= 0.06 * LABELS[:40]
    found = compare(inference(before), inference(after), LABELS, {"balanced": 0.5}, version="v 1")
    assert found.flips["balanced"].films == 0
    assert found.reasons == (f"AUC changes by {found.auc_change:+.4f}",)


def test_an_engine_that_gives_no_numbers_is_refused() -> None:
    before, after = films()
    after.probabilities[3] = np.nan
    found = compare(before, after, LABELS, {"balanced": 0.5}, version="v 1")
    assert found.reasons == ("gives no probability for 1 films",)
    assert found.to_json()["allowed"] is False


def test_every_engine_of_the_machine_is_compared_with_eager_float32() -> None:
    machine = this_machine("cpu")
    sample = blob_films(60, seed=2)
    calibration = Calibration(temperature=1.0, operating_points={"balanced": 0.5})
    reference, found = measure(builder(small_spec(), machine), sample.pixels, sample.labels, calibration)
    assert set(found) == {kind.name for kind in machine.kinds()} - {"torch-eager-fp32-cpu"}
    assert reference.probabilities.shape == (60, 2)
    exact = found["openvino-fp32-cpu"]
    assert exact.max_dp is not None
    assert exact.max_dp <= 1e-4
    assert exact.mean_distance_change == pytest.approx(0, abs=1e-3)
    assert exact.films == 60
    assert not exact.reasons
    assert all(agreement.version for agreement in found.values())
