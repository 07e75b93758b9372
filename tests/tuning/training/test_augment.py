import io
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.errors import InputError
from tests.models.synthetic import blob_films
from tests.tuning.training import plain_augment
from tuning.training.augment.batch import Augment, Augmentation, Draws, draw
from tuning.training.augment.settings import OPERATIONS, REACH

FILMS = torch.from_numpy(blob_films(8).pixels)
FIELDS = {
    "shift": ("across", "down"),
    "cutout": ("cutout", "centre"),
    "jpeg": ("quality",),
    "shrink": ("side",),
    "noise": ("noise", "grain"),
}
"""Names in `Draws` of the operations whose own name is not the only one."""
NEUTRAL = {"jpeg": 100, "shrink": 1}
"""Values of the operations that are not off at 0."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(recipe: Augmentation, films: torch.Tensor, seed: int = 0) -> Draws:
    return draw(recipe, films.shape, device=films.device, generator=generator(seed))


def acts(draws: Draws, operation: str) -> torch.Tensor:
    """Films [N] that an operation changes."""
    value = getattr(draws, FIELDS.get(operation, (operation,))[0])
    return (value.flatten(1) if value.ndim > 1 else value[:, None]).ne(NEUTRAL.get(operation, 0)).any(dim=1)


def smooth_films(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Soft shapes with a little noise, as a film has; every grey level occurs."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((count, 1, 6, 6)).astype(np.float32))
    films = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1) * 255
    return (films + torch.from_numpy(rng.normal(0, 2, films.shape))).clamp(0, 255).to(torch.uint8).squeeze(1)


@pytest.mark.parametrize(
    "recipe",
    [
        Augmentation(operations=len(OPERATIONS), magnitude=1, flip=0.5),
        Augmentation(strength=1, blur=0.5, cutout=0.5, elastic=0.5, jpeg=0.5, shrink=0.5),
    ],
)
def test_nothing_is_asked_of_the_device_that_the_films_are_on(recipe: Augmentation) -> None:
    """Films of the device `meta` have no values, so whatever depended on one would raise: on a GPU it would wait."""
    films = torch.empty(16, 48, 48, dtype=torch.uint8, device="meta")
    augmented = Augment(recipe)(films, generator(5), None)
    assert (augmented.device.type, augmented.shape, augmented.dtype) == ("meta", films.shape, torch.uint8)


def test_strength_zero_changes_nothing() -> None:
    assert torch.equal(Augment(0)(FILMS, generator()), FILMS)


def test_neutral_draws_change_nothing() -> None:
    assert torch.equal(Augment(1).change(FILMS, Draws.none(len(FILMS))), FILMS)


@pytest.mark.parametrize(
    "recipe", [0.5, 1, 3, Augmentation(operations=3, magnitude=3), Augmentation(jpeg=0.9, elastic=0.9)]
)
def test_an_augmented_film_is_a_film_and_the_input_stays(recipe: Augmentation | float) -> None:
    before = FILMS.clone()
    augmented = Augment(recipe)(FILMS, generator())
    assert augmented.shape == FILMS.shape
    assert augmented.dtype == torch.uint8
    assert torch.equal(FILMS, before)
    assert not torch.equal(augmented, FILMS)


@pytest.mark.parametrize("recipe", [1, Augmentation(operations=4)])
def test_every_film_has_its_own_draw_and_the_seed_decides(recipe: Augmentation | float) -> None:
    same = FILMS[:1].repeat(6, 1, 1)
    augmented = Augment(recipe)(same, generator())
    assert len({film.numpy().tobytes() for film in augmented}) == 6
    assert torch.equal(augmented, Augment(recipe)(same, generator()))
    assert not torch.equal(augmented, Augment(recipe)(same, generator(1)))


def test_more_strength_moves_further() -> None:
    def distance(strength: float) -> float:
        return float((Augment(strength)(FILMS, generator()).float() - FILMS.float()).abs().mean())

    assert distance(0.2) < distance(1) < distance(3)


def test_usual_strength_keeps_the_film_recognisable() -> None:
    smooth = torch.nn.functional.avg_pool2d(FILMS.float().unsqueeze(1), 5, 1, 2).squeeze(1).to(torch.uint8)
    augmented = Augment(0.5)(smooth, generator())
    for before, after in zip(smooth, augmented, strict=True):
        middle = torch.stack([before[6:26, 6:26].flatten(), after[6:26, 6:26].flatten()]).float()
        assert torch.corrcoef(middle)[0, 1] > 0.2


@pytest.mark.parametrize("operation", [*OPERATIONS, "mirrored"])
@pytest.mark.parametrize("size", [80, 93])
def test_each_operation_does_to_a_film_what_the_plain_one_does(operation: str, size: int) -> None:
    films = smooth_films(6, size)
    everything = drawn(Augmentation(operations=len(OPERATIONS), magnitude=2, flip=0.5), films, seed=3)
    names = FIELDS.get(operation, (operation,))
    draws = replace(Draws.none(len(films)), **{name: getattr(everything, name) for name in names})
    augmented = Augment(1).change(films, draws).numpy().astype(int)
    expected = np.stack([plain_augment.augment(film.numpy(), draws, at) for at, film in enumerate(films)]).astype(int)
    assert (expected != films.numpy()).any()
    # a grey between two levels may round to either; so may a coefficient of JPEG, which then moves its whole block
    assert (augmented != expected).mean() < (0.02 if operation == "jpeg" else 0.005)
    if operation != "jpeg":
        assert np.abs(augmented - expected).max() <= 1


@given(seed=st.integers(0, 2**32), operations=st.integers(1, len(OPERATIONS)), magnitude=st.floats(0.1, 3))
@settings(max_examples=15, deadline=None)
def test_all_operations_together_do_what_the_plain_ones_do(seed: int, operations: int, magnitude: float) -> None:
    films = smooth_films(4, 36, seed=seed % 1000)
    recipe = Augmentation(operations=operations, magnitude=magnitude, flip=0.3)
    draws = drawn(recipe, films, seed=seed)
    augmented = Augment(recipe)(films, generator(seed)).numpy().astype(int)
    expected = np.stack([plain_augment.augment(film.numpy(), draws, at) for at, film in enumerate(films)]).astype(int)
    # a level of difference before JPEG may move a coefficient over the edge of a coarse step
    coded = acts(draws, "jpeg").numpy()
    assert np.abs(augmented - expected)[~coded].max(initial=0) <= 1
    assert (augmented != expected)[~coded].sum() <= 0.005 * expected.size
    assert np.abs(augmented - expected)[coded].sum() <= 0.5 * expected.size


def test_jpeg_is_what_a_real_encoder_does() -> None:
    films = smooth_films(4, 64)
    quality = torch.tensor([20.0, 50.0, 75.0, 95.0])
    coded = Augment(1).change(films, replace(Draws.none(4), quality=quality)).numpy().astype(int)
    for film, level, ours in zip(films, quality, coded, strict=True):
        file = io.BytesIO()
        Image.fromarray(film.numpy()).save(file, "JPEG", quality=int(level))
        theirs = np.asarray(Image.open(file)).astype(int)
        assert np.abs(ours - theirs).mean() < 0.3 * np.abs(theirs - film.numpy()).mean()
        assert (np.abs(ours - theirs) > 1).mean() < 0.03


def test_stretch_widens_a_film_and_lowers_it_as_much() -> None:
    disc = ((np.mgrid[:201, :201] - 100) ** 2).sum(axis=0) < 40**2
    film = torch.from_numpy((disc * 255).astype(np.uint8))[None]
    draws = replace(Draws.none(1), stretch=torch.tensor([0.3]))
    wide = Augment(1).change(film, draws)[0] > 127
    across, down = int(wide.any(dim=0).sum()), int(wide.any(dim=1).sum())
    assert across / down == pytest.approx(np.exp(0.3), rel=0.03)
    assert int(wide.sum()) == pytest.approx(disc.sum(), rel=0.01)


def test_mirroring_alone_mirrors() -> None:
    assert torch.equal(Augment(Augmentation(flip=1))(FILMS, generator()), FILMS.flip(-1))


@pytest.mark.parametrize("operation", ["flip", "blur", "cutout", "elastic", "jpeg", "shrink"])
def test_only_the_drawn_share_is_touched(operation: str) -> None:
    field = "mirrored" if operation == "flip" else operation
    films = smooth_films(24, 160)
    recipe = Augmentation(**{operation: 0.5})  # type: ignore[arg-type]
    changed = (Augment(recipe)(films, generator()) != films).flatten(1).any(dim=1)
    chosen = acts(drawn(recipe, films), field)
    assert not (changed & ~chosen).any()
    assert changed.sum() > 0.3 * chosen.sum() > 2  # the least blurs and shrinkings change no grey level
    many = acts(drawn(Augmentation(**{operation: 0.1}), torch.zeros(4000, 2, 2)), field)  # type: ignore[arg-type]
    assert abs(int(many.sum()) - 400) < 5 * 19


def test_draws_are_uniform_within_their_reach() -> None:
    shape = torch.Size([4000, 4, 4])
    draws = draw(Augmentation(strength=0.7, jpeg=1, shrink=1), shape, device=torch.device("cpu"), generator=generator())
    for name, reach in (
        ("rotation", REACH.rotation),
        ("scale", REACH.scale),
        ("stretch", REACH.stretch),
        ("shear", REACH.shear),
        ("across", 2 * REACH.shift),
        ("down", 2 * REACH.shift),
        ("gamma", REACH.gamma),
        ("contrast", REACH.contrast),
        ("brightness", REACH.brightness),
    ):
        share = getattr(draws, name).numpy() / (0.7 * reach)
        assert scipy.stats.kstest(share, scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-4, name
    for share in (draws.noise / (0.7 * REACH.noise), (1 - draws.side) / REACH.shrink):
        assert scipy.stats.kstest(share.numpy(), scipy.stats.uniform(0, 1).cdf).pvalue > 1e-4
    assert scipy.stats.kstest(draws.grain.flatten().numpy(), scipy.stats.norm.cdf).pvalue > 1e-4
    assert draws.quality.min() == 30
    assert draws.quality.max() == 95
    assert draws.quality.mean() == pytest.approx(62.5, abs=1.5)


def test_so_many_operations_for_each_film_and_all_of_them_alike() -> None:
    films = torch.zeros(3000, 2, 2, dtype=torch.uint8)
    draws = drawn(Augmentation(operations=4), films)
    which = torch.stack([acts(draws, operation) for operation in OPERATIONS], dim=1)
    assert (which.sum(dim=1) == 4).all()
    expected = 3000 * 4 / len(OPERATIONS)
    assert ((which.sum(dim=0) - expected).abs() < 5 * expected**0.5).all()


def test_a_films_pixels_do_not_depend_on_the_others() -> None:
    films = smooth_films(6, 32)
    draws = drawn(Augmentation(operations=6, magnitude=2), films)
    together = Augment(1).change(films, draws)
    noisy = (draws.noise > 0).cumsum(0)
    for at in range(len(films)):
        alone = {name: value[at : at + 1] for name, value in vars(draws).items() if name != "grain"}
        grain = draws.grain[noisy[at] - 1 : noisy[at]] if draws.noise[at] > 0 else draws.grain[:0]
        film = Augment(1).change(films[at : at + 1], Draws(**alone, grain=grain))[0]
        assert (film.int() - together[at].int()).abs().float().mean() < 0.01


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"strength": 4}, "strength 4"),
        ({"magnitude": -1}, "magnitude -1"),
        ({"jpeg": 1.5}, "jpeg=1.5 is not a share"),
        ({"operations": 99}, "operations=99"),
    ],
)
def test_recipes_out_of_range_are_refused(recipe: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Augmentation(**recipe)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="strength 4"):
        Augment(4)
