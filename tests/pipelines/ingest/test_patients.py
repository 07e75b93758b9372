"""Patients told by file names, and keys that tell nobody who they are."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.decoding.placeholders import is_placeholder
from pipelines.errors import InputError
from pipelines.ingest.patients import SECRET_VARIABLE, PatientKeys, People, kermany_patient, kermany_subtype


@pytest.mark.parametrize(
    ("name", "patient", "subtype"),
    [
        ("train/PNEUMONIA/person1_bacteria_2.jpeg", "person1_bacteria", "bacteria"),
        ("person1_virus_6.jpeg", "person1_virus", "virus"),
        ("person447_virus_921_1.jpeg", "person447_virus", "virus"),
        ("IM-0115-0001.jpeg", "IM-0115", None),
        ("IM-0115-0001-0002.jpeg", "IM-0115", None),
        ("person1_virus_6_1.jpeg", "person1_virus", "virus"),
        ("IM-0429-0001-0002.jpeg", "IM-0429", None),
        ("NORMAL2-IM-0666-0001.jpeg", "NORMAL2-IM-0666", None),
        ("NORMAL2-IM-0666-0001-0002.jpeg", "NORMAL2-IM-0666", None),
        ("train/PNEUMONIA/BACTERIA-1008087-0001.jpeg", "1008087", "bacteria"),
        ("VIRUS-1008087-0002.jpeg", "1008087", "virus"),
        ("NORMAL-1003233-0001.jpeg", "1003233", None),
        ("NORMAL-IM-1.jpeg", None, None),
        ("chest_0001.dcm", None, None),
        ("1.2.840.113619.2.5", None, None),
    ],
)
def test_kermany_names(name: str, patient: str | None, subtype: str | None) -> None:
    assert kermany_patient(name) == patient
    assert kermany_subtype(name) == subtype


@given(st.text(), st.text(), st.text(min_size=1))
def test_keys_are_the_same_for_the_same_patient_only(one: str, other: str, secret: str) -> None:
    keys = PatientKeys(secret)
    assert (keys.key(one) == keys.key(other)) == (one == other)
    assert len(keys.key(one)) == 64
    assert PatientKeys(secret + "x").key(one) != keys.key(one)


def test_the_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "rayscan"):
        assert PatientKeys.from_environment().key("a") != PatientKeys.from_environment().key("a")
    assert SECRET_VARIABLE in caplog.text
    caplog.clear()
    monkeypatch.setenv(SECRET_VARIABLE, "hush, hush, hush!")
    assert PatientKeys.from_environment().key("a") == PatientKeys("hush, hush, hush!").key("a")
    assert not caplog.text
    monkeypatch.setenv(SECRET_VARIABLE, "fifteen letters")
    with pytest.raises(InputError, match="fewer than 16 characters"):
        PatientKeys.from_environment()


def test_equal_numbers_of_two_hospitals_are_two_people() -> None:
    keys = PatientKeys("secret")
    assert len({keys.key("4711"), keys.key("4711", "NORTH"), keys.key("4711", "SOUTH"), keys.key("14711")}) == 4
    people = People(keys)
    for film, issuer in (("a", "NORTH"), ("b", "SOUTH"), ("c", "NORTH"), ("d", None)):
        people.add(film, "4711", issuer)
    assert people.of["a"] == people.of["c"]
    assert len(set(people.of.values())) == 3
    assert "4711" not in repr(people)


@pytest.mark.parametrize(
    "name",
    ["0", "000-00-0000", "ANON", "anonymous", "Unknown", "N/A", "^^", "xxxxx", "ANONYMOUS^PATIENT", "no name", "-"],
)
def test_placeholders_are_no_patients(name: str) -> None:
    people = People(PatientKeys("secret"))
    people.add("film", name, "NORTH")
    assert (people.of, people.placeholders) == ({}, 1)


@pytest.mark.parametrize("name", ["1", "10", "person1_virus", "X1", "ANON4711", "MRN-0", "1111"])
def test_what_tells_patients_apart_is_no_placeholder(name: str) -> None:
    assert not is_placeholder(name)


def test_an_id_on_an_absurd_share_of_the_films_is_no_patient() -> None:
    people = People(PatientKeys("secret"))
    films = [f"{i}" for i in range(500)]
    for film in films:
        people.add(film, "device-7" if int(film) < 101 else f"p{int(film) // 99}", None)
    people.drop_shared(films)
    assert people.placeholders == 101
    assert len(people.of) == 399
