import pytest
import torch

from models.augment import Augment
from models.errors import InputError
from tests.models.synthetic import blob_films

FILMS = torch.from_numpy(blob_films(8).pixels)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_strength_zero_changes_nothing() -> None:
    assert torch.equal(Augment(0)(FILMS, generator()), FILMS)


@pytest.mark.parametrize("strength", [0.5, 1, 3])
def test_an_augmented_film_is_a_film_and_the_input_stays(strength: float) -> None:
    before = FILMS.clone()
    augmented = Augment(strength)(FILMS, generator())
    assert augmented.shape == FILMS.shape
    assert augmented.dtype == torch.uint8
    assert torch.equal(FILMS, before)
    assert not torch.equal(augmented, FILMS)


def test_every_film_has_its_own_draw_and_the_seed_decides() -> None:
    same = FILMS[:1].repeat(6, 1, 1)
    augmented = Augment(1)(same, generator())
    assert len({film.numpy().tobytes() for film in augmented}) == 6
    assert torch.equal(augmented, Augment(1)(same, generator()))
    assert not torch.equal(augmented, Augment(1)(same, generator(1)))


def test_more_strength_moves_further() -> None:
    def distance(strength: float) -> float:
        return float((Augment(strength)(FILMS, generator()).float() - FILMS.float()).abs().mean())

    assert distance(0.2) < distance(1) < distance(3)


def test_usual_strength_keeps_the_film_recognisable() -> None:
    smooth = torch.nn.functional.avg_pool2d(FILMS.float().unsqueeze(1), 5, 1, 2).squeeze(1).to(torch.uint8)
    augmented = Augment(1)(smooth, generator())
    for before, after in zip(smooth, augmented, strict=True):
        middle = torch.stack([before[6:26, 6:26].flatten(), after[6:26, 6:26].flatten()]).float()
        assert torch.corrcoef(middle)[0, 1] > 0.2


def test_strength_out_of_range() -> None:
    with pytest.raises(InputError, match="strength 4"):
        Augment(4)
