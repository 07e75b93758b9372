"""What of a header goes into the row of its scan: an allow-list of columns, with values from closed lists.

A technician can type anything into any element, a patient's name included. So free text never travels: of body part
and view only known words are kept, and so it is with modality, maker and model of the device (`devices.py`). The
unique identifiers of study, series and image are kept apart (`Identity`): they lead back to the patient in the PACS.
"""

import re
from dataclasses import dataclass, fields
from datetime import date
from typing import Final

import pydicom

from models.gate.words import NOT_FRONTAL, OTHER_PARTS
from pipelines.decoding import devices
from pipelines.decoding.elements import code, day, text

MOST_YEARS: Final = 90
"""Ages above are written as this one (45 CFR 164.514(b)(2)(i)(C)): the few who are older could be told by it."""

_CHEST: Final = {"CHEST", "CXR", "THORAX", "TORAX", "TORACE", "PECHO", "LUNG", "LUNGS", "PORTCHEST", "CHESTPA", "HEART"}
_FRONTAL: Final = {"PA", "AP", "FRONTAL", "SUPINE", "ERECT", "LORDOTIC", "PORTABLE"}
_AGE: Final = re.compile(r"(\d{1,3})([DWMY])")
_DAYS: Final = {"D": 1.0, "W": 7.0, "M": 30.44, "Y": 365.25}
_UID: Final = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True, kw_only=True)
class HeaderColumns:
    """Columns of contracts.SCORES that a DICOM header fills; None where it says nothing known."""

    study_date: date | None = None
    view: str | None = None
    modality: str | None = None
    body_part: str | None = None
    manufacturer: str | None = None
    device_model: str | None = None
    age_years: int | None = None
    sex: str | None = None
    presentation_intent: str | None = None


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The unique identifiers by which a PACS finds the image."""

    study_uid: str
    series_uid: str
    instance_uid: str


COLUMNS: Final = tuple(field.name for field in fields(HeaderColumns))


def read_columns(dataset: pydicom.Dataset) -> HeaderColumns:
    """The columns of a DICOM header."""
    maker = devices.maker(text(dataset, "Manufacturer"))
    intent = text(dataset, "PresentationIntentType")
    sex = (text(dataset, "PatientSex") or "").upper()
    return HeaderColumns(
        study_date=day(dataset, "StudyDate"),
        view=_known(code(dataset, "ViewPosition"), _FRONTAL | NOT_FRONTAL),
        modality=devices.modality(code(dataset, "Modality")),
        body_part=_known(code(dataset, "BodyPartExamined"), _CHEST | OTHER_PARTS),
        manufacturer=maker,
        device_model=devices.model(text(dataset, "ManufacturerModelName")) if maker else None,
        age_years=_age(dataset),
        sex=sex if sex in {"M", "F", "O"} else None,
        presentation_intent=intent if intent in {"FOR PRESENTATION", "FOR PROCESSING"} else None,
    )


def read_identity(dataset: pydicom.Dataset) -> Identity | None:
    """The unique identifiers of a DICOM header; None unless it has all three."""
    uids = [text(dataset, name) or "" for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
    if not all(_UID.fullmatch(value) for value in uids):
        return None
    return Identity(study_uid=uids[0], series_uid=uids[1], instance_uid=uids[2])


def _known(value: str | None, words: set[str] | frozenset[str]) -> str | None:
    kept = [word for word in re.findall(r"[A-Z0-9]+", (value or "").upper()) if word in words]
    return " ".join(kept) or None


def _age(dataset: pydicom.Dataset) -> int | None:
    """Years, by the age that the header gives (PS3.5, VR AS), else from birth to study."""
    age = _AGE.fullmatch((text(dataset, "PatientAge") or "").upper())
    if age:
        years = float(age[1]) * _DAYS[age[2]] / _DAYS["Y"]
    else:
        born, seen = day(dataset, "PatientBirthDate"), day(dataset, "StudyDate")
        if born is None or seen is None or seen < born:
            return None
        years = (seen - born).days / _DAYS["Y"]
    return min(int(years + 1e-9), MOST_YEARS)
