"""The limits that training films show: of what most headers tell, and enough films have."""

from dataclasses import replace

import numpy as np

from models.films import Films
from models.intended_use import IntendedUse
from tests.models.synthetic import blob_films
from tuning.recipes.intended import seen_in

FILMS = blob_films(200)


def having(**groups: list[str]) -> Films:
    return replace(FILMS, groups={kind: np.array(names) for kind, names in groups.items()})


def test_films_without_headers_show_no_limits() -> None:
    assert seen_in(FILMS) == IntendedUse()
    assert seen_in(having(age_years=[""] * 200, view=[""] * 200)) == IntendedUse()


def test_what_the_headers_of_most_films_tell() -> None:
    shown = seen_in(
        having(
            age_years=["1 to 4 years"] * 120 + ["5 to 17 years"] * 79 + ["65 years and more"],
            view=["AP SUPINE"] * 150 + ["PA"] * 49 + ["AP LORDOTIC"],
            modality=["DX"] * 99 + [""] * 101,
            manufacturer=["Siemens"] * 199 + ["Philips"],
        )
    )
    assert shown == IntendedUse(age_years=(1, 17), views=("AP", "PA"), manufacturers=("Siemens",))


def test_the_oldest_band_has_no_end() -> None:
    assert seen_in(having(age_years=["40 to 64 years"] * 100 + ["65 years and more"] * 100)).age_years == (40, 90)
