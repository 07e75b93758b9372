"""A scan read from its archive: what its pixels tell where the header is silent."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.intended_use import IntendedUse
from models.spec import Preprocessing
from pipelines.contracts import Reason
from pipelines.decoding.film import ReadSettings, read_film
from pipelines.phantom import dicom_bytes, encode
from pipelines.phantom import film as draw_film
from pipelines.storage import open_store


def test_pixels_tell_what_a_silent_header_does_not(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    film, _ = draw_film(np.random.default_rng(4), opacity=False, size=200)
    shown = {
        None: film,
        Reason.INVERTED: 255 - film,
        Reason.ROTATED: np.rot90(film),
        Reason.CROPPED: film[:, :100],
        Reason.NOT_CHEST: np.random.default_rng(2).integers(0, 255, (200, 200), dtype=np.uint8),
    }
    told = {}
    for reason, pixels in shown.items():
        store.put("scan", dicom_bytes(np.ascontiguousarray(pixels), body_part=""))
        scan = store.head("scan")
        settings = ReadSettings(preprocessing=Preprocessing(size=128))
        told[reason] = read_film(store.uri("scan"), scan.etag, scan.size, settings)
    assert {reason: film.reason for reason, film in told.items()} == {reason: reason for reason in shown}
    assert {reason for reason, film in told.items() if film.pixels is not None} == {None}


def test_a_scan_of_others_than_the_models_patients_is_not_decoded(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    film, _ = draw_film(np.random.default_rng(2), opacity=False, size=200)
    store.put("scan", dicom_bytes(film, view="AP"))
    scan = store.head("scan")
    told = {}
    for views in (("PA",), ("AP",), ()):
        use = IntendedUse(views=views)
        settings = ReadSettings(preprocessing=Preprocessing(size=128), intended_use=use)
        read = read_film(store.uri("scan"), scan.etag, scan.size, settings)
        told[views] = (read.reason, read.detail, read.pixels is None, read.columns.view)
    assert told == {
        ("PA",): (Reason.OUTSIDE_INTENDED_USE, "views", True, "AP"),
        ("AP",): (None, "", False, "AP"),
        (): (None, "", False, "AP"),
    }


@pytest.mark.parametrize("how", [{"harmonise": 1.2}, {"fit": "crop"}, {"fit": "letterbox"}], ids=str)
def test_the_gate_sees_films_as_it_knows_them(tmp_path: Path, how: dict[str, Any]) -> None:
    store = open_store(str(tmp_path))
    film, _ = draw_film(np.random.default_rng(4), opacity=False, size=200)
    for reason, pixels in {None: film, Reason.INVERTED: 255 - film, Reason.CROPPED: film[:, :100]}.items():
        store.put("scan", encode(np.ascontiguousarray(pixels), "png"))
        scan = store.head("scan")
        settings = ReadSettings(preprocessing=Preprocessing(size=128, **how))
        assert read_film(store.uri("scan"), scan.etag, scan.size, settings).reason is reason
