"""A film of any shape becomes a square, and only as the preprocessing says."""

import numpy as np
import pytest
from PIL import Image

from models.errors import InputError
from models.gate.checks import check_pixels
from models.spec import Fit, Preprocessing
from pipelines.decoding.decode import decode
from pipelines.decoding.fit import Pixels, fitted, kept, least_side
from tests.pipelines.decoding.films import encode, ramp


def disc(width: int, height: int, radius: int = 30) -> Image.Image:
    """A bright disc in the middle of a grey film: whatever stretches it shows."""
    y, x = np.mgrid[:height, :width]
    inside = (x - (width - 1) / 2) ** 2 + (y - (height - 1) / 2) ** 2 < radius**2
    return Image.fromarray(np.where(inside, 220, 60).astype(np.uint8))


def shape(film: Pixels) -> tuple[int, int]:
    """Width and height of what is bright."""
    bright = film > 140
    return int(bright.any(axis=0).sum()), int(bright.any(axis=1).sum())


def test_squash_is_the_resize_that_every_model_was_trained_with() -> None:
    film = Image.fromarray(ramp(96, 80))
    old = np.asarray(film.resize((32, 32), Image.Resampling.BILINEAR))
    assert (fitted(film, Preprocessing(size=32)) == old).all()
    assert (fitted(film, Preprocessing(size=16, decoded_size=32)) == old).all()


@pytest.mark.parametrize(("fit", "width"), [("squash", 30), ("letterbox", 30), ("crop", 60)])
def test_what_each_fit_does_to_a_wide_film(fit: Fit, width: int) -> None:
    film = fitted(disc(200, 100), Preprocessing(size=100, fit=fit))
    assert film.shape == (100, 100)
    wide, high = shape(film)
    assert abs(wide - width) <= 1
    assert abs(high - (30 if fit == "letterbox" else 60)) <= 1
    bars = film[:24], film[76:]
    assert all((bar == 0).all() for bar in bars) == (fit == "letterbox")


@pytest.mark.parametrize(("width", "height"), [(200, 100), (100, 200), (1, 300), (300, 1), (16, 16)])
@pytest.mark.parametrize("fit", ["squash", "letterbox", "crop"])
@pytest.mark.parametrize("aspect", [None, 1.3])
def test_any_shape_fits(width: int, height: int, fit: Fit, aspect: float | None) -> None:
    film = fitted(disc(width, height), Preprocessing(size=64, fit=fit, harmonise=aspect))
    assert (film.shape, film.dtype) == ((64, 64), np.uint8)


def test_a_harmonised_film_keeps_its_middle_and_loses_shape_border_contrast() -> None:
    preprocessing = Preprocessing(size=112, harmonise=1.25)
    wide, tall = (fitted(disc(w, h), preprocessing).astype(int) for w, h in ((300, 100), (125, 320)))
    for film in (wide, tall):
        assert (film[0] == 0).all()
        assert (film[:4, :4] == 0).all()
        assert film[56, 56] == 255
    # A film three times as wide as high is not narrowed by that, as it is when it is only stretched.
    assert shape(wide)[0] == pytest.approx(60 / 125 * 112, abs=2)
    bright, dim = Image.fromarray(ramp()), Image.fromarray((60 + ramp() / 3).astype(np.uint8))
    assert (
        np.abs(fitted(bright, preprocessing).astype(int) - fitted(dim, preprocessing)).max() <= 12
    )  # of rounding, three times enlarged


def test_a_blank_film_stays_blank() -> None:
    noise = np.random.default_rng(0).integers(100, 104, (200, 240), dtype=np.uint8)
    film = fitted(Image.fromarray(noise), Preprocessing(size=112, harmonise=1.2))
    assert check_pixels(film[20:-20, 20:-20]) == "blank"


def test_a_film_is_decoded_fine_enough_for_what_is_kept_of_it() -> None:
    assert least_side(2500, 2048, Preprocessing(size=224)) == 224
    assert least_side(2500, 2048, Preprocessing(size=64, decoded_size=224)) == 224
    assert least_side(2500, 2048, Preprocessing(size=224, fit="crop")) == 224
    assert least_side(2500, 1250, Preprocessing(size=224, fit="letterbox")) == 112
    # Cut to a quarter of its height, it has to be decoded four times as fine.
    tall = Preprocessing(size=224, harmonise=2.0)
    assert kept(1000, 2000, tall) == (0, 750, 1000, 1250)
    assert least_side(1000, 2000, tall) == 448


@pytest.mark.parametrize("form", ["jpeg", "png"])
def test_decoding_fits(form: str) -> None:
    preprocessing = Preprocessing(size=32, fit="letterbox", decode="exact")
    film = disc(200, 100)
    scan = decode(encode(film, form, **({"quality": 98} if form == "jpeg" else {})), preprocessing)
    assert np.abs(scan.pixels.astype(int) - fitted(film, preprocessing)).max() <= 2
    coarse = decode(encode(disc(1600, 800), "jpeg"), Preprocessing(size=32, fit="letterbox")).pixels
    assert np.abs(coarse.astype(int) - fitted(disc(1600, 800), preprocessing)).mean() < 3


def test_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match="unknown fit 'stretch'; choose from squash, letterbox, crop"):
        Preprocessing(fit="stretch")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"choose 0\.25 to 4"):
        Preprocessing(harmonise=9.0)
