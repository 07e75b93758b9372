from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.gate import ScanTags, check_pixels, check_tags


@pytest.mark.parametrize(
    "tags",
    [
        ScanTags(),
        ScanTags(modality="", body_part=" ", view=""),
        ScanTags(modality="CR", body_part="CHEST", view="PA"),
        ScanTags(modality="dx ", body_part="Chest_PA", view="ap_supine"),
        ScanTags(modality="RG", body_part="THORAX", view="AP SUPINE"),
        ScanTags(modality="OT", body_part="LUNG", view=None),
        ScanTags(modality="DR", body_part="UNKNOWN", view="UNKNOWN"),
        ScanTags(modality="CR", body_part="PORT CHEST", view="AP"),
    ],
)
def test_frontal_chest_films_and_silent_headers_pass(tags: ScanTags) -> None:
    assert check_tags(tags) is None


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        (ScanTags(modality="CT", body_part="CHEST"), "not_xray"),
        (ScanTags(modality="mg"), "not_xray"),
        (ScanTags(modality="CR", body_part="HIP"), "not_chest"),
        (ScanTags(modality="CR", body_part="EXTREMITY", view="AP"), "not_chest"),
        (ScanTags(modality="DX", body_part="THORACIC SPINE"), "not_chest"),
        (ScanTags(modality="DX", body_part="CHEST_ABDOMEN"), "not_chest"),
        (ScanTags(modality="DX", body_part="CHEST", view="LATERAL"), "not_frontal"),
        (ScanTags(modality="DX", body_part="CHEST", view="ll"), "not_frontal"),
        (ScanTags(view="RL"), "not_frontal"),
        (ScanTags(view="L_LATERAL"), "not_frontal"),
        (ScanTags(view="PA OBLIQUE"), "not_frontal"),
    ],
)
def test_other_scans_are_rejected_with_their_reason(tags: ScanTags, reason: str) -> None:
    assert check_tags(tags) == reason


def test_reasons_stand_in_the_closed_list() -> None:
    from pipelines.contracts import STATUS_OF_REASON, Reason, Status

    for reason in ("not_xray", "not_chest", "not_frontal", "blank"):
        assert STATUS_OF_REASON[Reason(reason)] is Status.REJECTED


def test_uniform_film_is_blank_even_with_noise_and_a_marker() -> None:
    film = np.random.default_rng(0).integers(0, 6, (224, 224), dtype=np.uint8)
    film[5:15, 5:15] = 255
    assert check_pixels(film) == "blank"
    assert check_pixels(np.full((64, 64), 255, dtype=np.uint8)) == "blank"


def test_dim_film_with_structure_is_not_blank() -> None:
    ramp = np.tile(np.linspace(10, 60, 112).astype(np.uint8), (112, 1))
    assert check_pixels(ramp) is None


def test_real_chest_films_pass(real_data: Path) -> None:
    films = sorted((real_data / "kermany_224" / "val").rglob("*.jpeg"))
    films += sorted((real_data / "kermany_224" / "train").rglob("*.jpeg"))[::40]
    for film in films:
        assert check_pixels(np.asarray(Image.open(film).convert("L"))) is None, film.name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nih_dx_chest.dcm", None),
        ("966_fixed.dcm", None),
        ("RG1_J2KI.dcm", None),
        ("RG2_JPLL.dcm", "not_chest"),
        ("RG3_J2KI.dcm", "not_chest"),
    ],
)
def test_real_dicom_headers(real_data: Path, name: str, reason: str | None) -> None:
    import pydicom

    header = pydicom.dcmread(real_data / "dicom" / name, stop_before_pixels=True)
    tags = ScanTags(
        modality=header.get("Modality"), body_part=header.get("BodyPartExamined"), view=header.get("ViewPosition")
    )
    assert check_tags(tags) == reason
