"""Every verb over an archive full of planted words, films in children among them: nothing comes out anywhere.

`tests/integration/test_privacy.py` does one night of it, and shows that the search finds what it should.
"""

import pytest

from tests.planted.verbs import another_night, check, from_films_to_a_model, hospital, one_night

pytestmark = pytest.mark.chaos


def test_no_verb_writes_says_or_shows_anything_that_was_planted(rayscan_command: str) -> None:
    with hospital(rayscan_command, films=32) as place:
        bundle = from_films_to_a_model(place)
        one_night(place)
        another_night(place, bundle)
        check(place, nights=["scores", "isolated"])
