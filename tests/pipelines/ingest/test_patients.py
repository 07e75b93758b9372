"""Patients told by file names, and keys that tell nobody who they are."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ingest.patients import SECRET_VARIABLE, PatientKeys, kermany_patient, kermany_subtype


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
    monkeypatch.setenv(SECRET_VARIABLE, "hush")
    assert PatientKeys.from_environment().key("a") == PatientKeys("hush").key("a")
    assert not caplog.text
