"""Changed films are changed as their names say, and a model that lives on a shortcut is found out by them."""

import numpy as np
import pytest
from PIL import Image

from models.errors import InputError
from models.statistics.robustness import CHANGES, perturbed, robustness, score_copies


def films(count: int, seed: int = 0) -> np.ndarray:
    """Soft blots of all greys, with fine grain."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(30, 226, (count, 8, 8)).astype(np.uint8)
    soft = np.stack([np.asarray(Image.fromarray(one).resize((96, 96), Image.Resampling.BICUBIC)) for one in coarse])
    return np.clip(soft.astype(int) + rng.integers(-12, 13, soft.shape), 0, 255).astype(np.uint8)


def grain(pixels: np.ndarray) -> np.ndarray:
    return np.abs(np.diff(pixels.astype(int), axis=2)).mean(axis=(1, 2))


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_always_the_same_and_leaves_a_film(change: str) -> None:
    before = films(4)
    after = perturbed(before, change)
    assert (after.shape, after.dtype) == (before.shape, np.uint8)
    assert (after == perturbed(before, change)).all()
    assert (before == films(4)).all(), "the films themselves stay"
    alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(before, after, strict=True)]
    assert 0.5 < min(alike) < 1, "changed, and still the film"


def test_changes_do_what_their_names_say() -> None:
    before = films(16)
    after = {change: perturbed(before, change) for change in CHANGES}
    assert after["darker"].mean() < before.mean() - 10
    assert after["brighter"].mean() > before.mean() + 10
    assert after["flatter"].std() < 0.7 * before.std()
    assert after["harder"].std() > 1.2 * before.std()
    for change in ("blurred", "coarser"):
        assert (grain(after[change]) < 0.65 * grain(before)).all()
    centre = before[:, 30:66, 30:66].astype(int)
    assert (
        np.abs(after["cropped"][:, 30:66, 30:66].astype(int) - centre).mean()
        < np.abs(after["cropped"].astype(int) - before).mean()
    ), "the middle moves least"
    with pytest.raises(InputError, match="unknown change 'upside down'; choose from darker"):
        perturbed(before, "upside down")


def test_stretching_moves_a_line_along_its_side_alone() -> None:
    film = np.zeros((1, 100, 100), dtype=np.uint8)
    film[0, :, 20] = film[0, 20, :] = 255  # its middle 29.5 from the film's: 36.9 after the stretch
    wider, taller = perturbed(film, "wider")[0], perturbed(film, "taller")[0]
    assert (wider[60].argmax(), wider[:, 60].argmax()) == (13, 20)
    assert (taller[60].argmax(), taller[:, 60].argmax()) == (20, 13)


def coded_films() -> tuple[np.ndarray, np.ndarray]:
    """Diseased films have a bright middle, and grain by the way they were coded."""
    labels = np.repeat([0, 1], 40)
    pixels = films(80, seed=1).astype(int)
    rng = np.random.default_rng(2)
    pixels[labels == 1, 30:66, 30:66] += 60
    pixels[labels == 1] += rng.integers(-8, 9, (40, 96, 96))
    return np.clip(pixels, 0, 255).astype(np.uint8), labels


def by_grain(some: np.ndarray) -> np.ndarray:
    return (grain(some) / 100).clip(0, 1).astype(np.float32)


def by_what_is_shown(some: np.ndarray) -> np.ndarray:
    middle, all_of_it = some[:, 30:66, 30:66].mean(axis=(1, 2)), some.mean(axis=(1, 2))
    return (0.5 + (middle - all_of_it) / 255).clip(0, 1).astype(np.float32)


def test_a_model_that_relies_on_grain_is_less_robust_than_one_that_relies_on_anatomy() -> None:
    pixels, labels = coded_films()
    shortcut = robustness(score_copies(by_grain, pixels, labels), 0.1)
    honest = robustness(score_copies(by_what_is_shown, pixels, labels), 0.5)
    assert shortcut.auc > honest.auc > 0.85, "as validation sees it, the shortcut is better"
    assert honest.mean_auc > shortcut.mean_auc
    assert shortcut.worst in {"blurred", "coarser", "recoded"}
    assert shortcut.changed[shortcut.worst]["auc"] < honest.changed[honest.worst]["auc"]
    assert honest.to_json()["changed"].keys() == CHANGES.keys()
