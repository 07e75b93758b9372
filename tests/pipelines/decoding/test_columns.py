"""What of a DICOM header reaches a row: known words and numbers, never free text; identifiers apart."""

from datetime import date

import numpy as np
import pytest

from models.errors import InputError
from pipelines.decoding.columns import HeaderColumns
from pipelines.decoding.decode import read_header
from pipelines.provenance import Provenance, check_site, patient_key
from tests.pipelines.decoding.films import SECRETS, dicom, ramp

FILM = ramp()


def columns(**tags: object) -> HeaderColumns:
    return read_header(dicom(FILM, **tags)).columns


def test_a_usual_header() -> None:
    assert columns(
        Manufacturer="FUJIFILM Corporation", ManufacturerModelName="DR-ID 1200", PatientSex="F", PatientAge="045Y",
        PresentationIntentType="FOR PRESENTATION",
    ) == HeaderColumns(
        study_date=date(2024, 2, 29), view="PA", modality="DX", body_part="CHEST", manufacturer="Fujifilm",
        device_model="DR-ID 1200", age_years=45, sex="F", presentation_intent="FOR PRESENTATION",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("age", "born", "years"),
    [
        ("045Y", None, 45),
        ("006M", None, 0),
        ("030M", None, 2),
        ("104W", None, 1),
        ("103Y", None, 90),
        ("", "20200301", 3),
        ("", "20200228", 4),
        ("old", "19010101", 90),
        (None, "20250101", None),
        (None, None, None),
    ],
)
def test_age_in_years(age: str | None, born: str | None, years: int | None) -> None:
    tags = {} if age is None else {"PatientAge": age}
    assert columns(PatientBirthDate=born, **tags).age_years == years


@pytest.mark.parametrize(
    "name", ["Manufacturer", "ManufacturerModelName", "Modality", "PresentationIntentType", "PatientSex", "PatientAge"]
)
def test_free_text_does_not_travel(name: str) -> None:
    assert "DOE" not in repr(columns(**{name: "JANE DOE"})).upper()


@pytest.mark.parametrize("name", ["DOE", "JANE", "DOE JANE", "D0E19341231"])
@pytest.mark.parametrize("keyword", ["Manufacturer", "ManufacturerModelName", "Modality", "ViewPosition", "PatientSex"])
def test_a_name_in_the_form_of_a_code_does_not_travel_either(keyword: str, name: str) -> None:
    known = {"Manufacturer": "Agfa", "ManufacturerModelName": "DX-D 600"}
    shown = repr(columns(**{**known, keyword: name}))
    assert not any(part in shown for part in (*name.split(), "19341231"))


@pytest.mark.parametrize(
    ("maker", "model", "kept"),
    [
        ("Agfa", "DX-D 600", "DX-D 600"),
        ("KODAK", "DirectView CR 975", "DirectView CR 975"),
        ("Carestream Health", "DRX-Evolution", "DRX-Evolution"),
        ("Philips Medical Systems", "DigitalDiagnost", "DigitalDiagnost"),
        ("GE Healthcare", "Discovery XR656", "Discovery XR656"),
        ("SIEMENS", "FLUOROSPOT Compact FD", "FLUOROSPOT Compact FD"),
        ("Canon Inc.", "CXDI-401C", "CXDI-401C"),
        ("KONICA MINOLTA", "AeroDR 3", "AeroDR 3"),
        ("Agfa", "DX-D 600 DOE JANE", "DX-D 600"),
        ("Agfa", "DX-D 19341231", "DX-D"),
        ("Agfa", "DOE^JANE", None),
        ("Agfa", "1934 4711", None),
        ("Nobody", "DX-D 600", None),
    ],
)
def test_of_a_model_only_known_words_travel(maker: str, model: str, kept: str | None) -> None:
    assert columns(Manufacturer=maker, ManufacturerModelName=model).device_model == kept


@pytest.mark.parametrize("name", ["BodyPartExamined", "ViewPosition"])
def test_of_codes_only_known_words_travel(name: str) -> None:
    assert "DOE" not in repr(columns(**{name: "DOE CHEST PA"}))
    assert columns(BodyPartExamined="PORT CHEST DOE").body_part == "CHEST"


def test_what_identifies_is_kept_apart_and_out_of_sight() -> None:
    uids = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.4", "SOPInstanceUID": "1.2.5"}
    header = read_header(dicom(FILM, **uids, InstitutionName="St. Jane", IssuerOfPatientID="NORTH"))
    assert header.identity
    assert vars(header.identity) == {"study_uid": "1.2.3", "series_uid": "1.2.4", "instance_uid": "1.2.5"}
    assert not any(text in repr(header) for text in (*SECRETS, "1.2.3", "St. Jane", "NORTH"))
    assert read_header(dicom(FILM)).identity is None  # no study


def test_equal_numbers_of_two_hospitals_are_two_people() -> None:
    secret = "a secret of some length"
    header = read_header(dicom(FILM))
    issued = read_header(dicom(FILM, IssuerOfPatientID="NORTH"))
    ours = Provenance(secret=secret)
    keys = {ours.patient_of(header, "a"), ours.patient_of(header, "b"), ours.patient_of(issued, "a")}
    assert len(keys) == 3
    assert ours.patient_of(issued, "a") == ours.patient_of(issued, "b") == patient_key(secret, "MRN-0042", "NORTH")
    assert Provenance().patient_of(header, "a") is None
    assert secret not in repr(ours)


def test_the_site_of_a_scan() -> None:
    header = read_header(dicom(np.ascontiguousarray(FILM), InstitutionName="North Hospital"))
    uri, root = "s3://films/north/2024/x.dcm", "s3://films"
    assert Provenance(site="all").site_of(uri, header) == "all"
    assert Provenance(site_from="1", root=root).site_of(uri, None) == "north"
    assert Provenance(site_from="2", root=root).site_of(uri, None) == "2024"
    assert Provenance(site_from="3", root=root).site_of(uri, None) is None
    assert Provenance(site_from="institution").site_of(uri, header) == "North Hospital"
    assert Provenance(site_from="institution").site_of(uri, None) is None
    assert Provenance().site_of(uri, header) is None


@pytest.mark.parametrize(("site", "site_from"), [("a", "1"), (None, "0"), (None, "-1"), (None, "header"), (None, "")])
def test_sites_that_cannot_be_meant_are_refused(site: str | None, site_from: str) -> None:
    with pytest.raises(InputError, match="--site"):
        check_site(site, site_from)
