"""A whole archive of phantom films: labelled by folders like Kaggle's Kermany set, or flat like a hospital's.

Every patient has their own random stream (`np.random.SeedSequence.spawn`), so no film depends on another patient, and a
seed always gives the same archive, byte for byte.
"""

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from pipelines.errors import InputError
from pipelines.phantom.anatomy import Subtype, draw_patient
from pipelines.phantom.exposure import HOME_SCANNER, Scanner
from pipelines.phantom.files import Bits, Format, Photometric, broken_files, dicom_bytes, encode
from pipelines.phantom.render import render

if TYPE_CHECKING:  # films are drawn on machines without obstore, too
    from pipelines.storage import Store

ArchiveLayout = Literal["kaggle", "flat"]

KERMANY_PREVALENCE = 0.74
"""Share of pneumonia among Kermany's training films."""

_SUFFIX: dict[Format, str] = {"jpeg": "jpeg", "png": "png", "dicom": "dcm"}
_DICOM_KINDS: tuple[tuple[Bits, Photometric], ...] = (
    (12, "MONOCHROME2"),
    (12, "MONOCHROME1"),
    (8, "MONOCHROME2"),
    (8, "MONOCHROME1"),
)
_FIRST_DAY = date(2019, 1, 1)
_DAYS = 5 * 365


@dataclass(frozen=True, kw_only=True)
class _Case:
    """One patient of the archive."""

    number: int
    """Counts from 1."""
    subtype: Subtype
    test: bool
    stream: np.random.SeedSequence

    @property
    def label(self) -> str:
        return "PNEUMONIA" if self.subtype else "NORMAL"


@dataclass(frozen=True, kw_only=True)
class _Film:
    """One film of the archive, not yet a file."""

    case: _Case
    number: int
    """Number among the patient's films, from 1."""
    day: date
    pixels: npt.NDArray[np.uint8]


def write_archive(
    store: "Store",
    *,
    patients: int = 200,
    seed: int = 0,
    size: int | tuple[int, int] = 256,
    layout: ArchiveLayout = "kaggle",
    formats: Sequence[Format] = ("jpeg",),
    broken: bool = False,
    prevalence: float = KERMANY_PREVALENCE,
    scanner: Scanner = HOME_SCANNER,
) -> int:
    """Write an archive of phantom films into `store`; returns how many scans it holds, broken ones included.

    `size`: side of square films in pixels, or the narrowest and widest width of films that differ in size and aspect,
    as originals do. `layout`: `kaggle` sorts into `train|test/NORMAL|PNEUMONIA/` under Kermany's names, every seventh
    patient of a class in `test/`; `flat` names by month and hash and adds `labels.csv` (path, label, subtype,
    patient_id). Patients have 1 to 4 films, all of one class; `prevalence` is the share of patients with pneumonia, two
    thirds of them bacterial. Several `formats` alternate, and so do the kinds of DICOM. `broken` adds `damaged/` with
    `broken_files(seed)`. Another `scanner` changes nothing but the films' grey levels.

    Raises `InputError` on settings out of range, `StorageError` and `AccessError` as the store does.
    """
    _check(patients, size, layout, formats, prevalence)
    labels = [("path", "label", "subtype", "patient_id")]
    seen = {"": 0, "bacteria": 0, "virus": 0}
    count = 0
    for count, shot in enumerate(_take_films(_cast(patients, seed, prevalence), size, scanner), start=1):
        case = shot.case
        seen[case.subtype] += 1
        form = formats[(count - 1) % len(formats)]
        stem = _kaggle_key(shot, seen[case.subtype]) if layout == "kaggle" else _flat_key(shot, seed)
        key = f"{stem}.{_SUFFIX[form]}"
        store.put(key, _file(shot, form, patient_id=_patient_id(case, layout), turn=(count - 1) // len(formats)))
        labels.append((key, case.label, case.subtype, _patient_id(case, layout)))
    if layout == "flat":
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(labels)
        store.put("labels.csv", text.getvalue().encode())
    damaged = broken_files(seed) if broken else {}
    for name, data in damaged.items():
        store.put(f"damaged/{name}", data)
    return count + len(damaged)


def _check(patients: int, size: int | tuple[int, int], layout: str, formats: Sequence[str], prevalence: float) -> None:
    if patients < 1:
        raise InputError(f"an archive of {patients} patients; ask for 1 or more")
    if not 0 <= prevalence <= 1:
        raise InputError(f"prevalence {prevalence} is out of range; choose 0 to 1")
    low, high = (size, size) if isinstance(size, int) else size
    if not 32 <= low <= high:
        raise InputError(f"film size {size} is out of range; choose 32 pixels or more, the narrowest first")
    if layout not in get_args(ArchiveLayout):
        raise InputError(f"unknown layout {layout!r}; choose from {', '.join(get_args(ArchiveLayout))}")
    if not formats or set(formats) - set(get_args(Format)):
        raise InputError(f"formats {', '.join(formats) or '(none)'}; choose from {', '.join(get_args(Format))}")


def _cast(patients: int, seed: int, prevalence: float) -> list[_Case]:
    """The patients: who has which disease, and who goes to the test folder."""
    first, *streams = np.random.SeedSequence(seed).spawn(patients + 1)
    ill = round(patients * prevalence)
    if 0 < prevalence < 1 and patients > 1:
        ill = min(max(ill, 1), patients - 1)  # a small archive still has both classes
    places = np.random.default_rng(first).permutation(patients).tolist()
    cases = []
    for number, (place, stream) in enumerate(zip(places, streams, strict=True), start=1):
        subtype = _subtype(place, ill)
        within = place if subtype else place - ill
        cases.append(_Case(number=number, subtype=subtype, test=within % 7 == 1, stream=stream))
    return cases


def _subtype(place: int, ill: int) -> Subtype:
    if place >= ill:
        return ""
    return "virus" if place % 3 == 2 else "bacteria"


def _take_films(cases: Sequence[_Case], size: int | tuple[int, int], scanner: Scanner) -> Iterator[_Film]:
    for case in cases:
        rng = np.random.default_rng(case.stream)
        patient = draw_patient(rng, case.subtype)
        day = _FIRST_DAY + timedelta(days=int(rng.integers(_DAYS)))
        for number in range(1, int(rng.integers(1, 5)) + 1):
            width, aspect = _frame(rng, size)
            pixels, _ = render(patient, rng, size=width, aspect=aspect, scanner=scanner)
            yield _Film(case=case, number=number, day=day, pixels=pixels)
            day += timedelta(days=int(rng.integers(1, 10)))


def _frame(rng: np.random.Generator, size: int | tuple[int, int]) -> tuple[int, float]:
    """Width and aspect ratio of a film: square, or as varied as originals."""
    if isinstance(size, int):
        return size, 1.0
    return int(rng.integers(size[0], size[1], endpoint=True)), rng.uniform(1.0, 1.5)


def _kaggle_key(shot: _Film, running: int) -> str:
    """Kermany's names: normal films are numbered within the patient, pneumonia films within the subtype."""
    case = shot.case
    folder = f"{'test' if case.test else 'train'}/{case.label}"
    if case.subtype:
        return f"{folder}/person{case.number}_{case.subtype}_{running}"
    return f"{folder}/IM-{case.number:04d}-{shot.number:04d}"


def _flat_key(shot: _Film, seed: int) -> str:
    words = f"{seed}/{shot.case.number}/{shot.number}".encode()
    return f"{shot.day:%Y/%m}/{hashlib.blake2b(words, digest_size=8).hexdigest()}"


def _patient_id(case: _Case, layout: ArchiveLayout) -> str:
    """The patient id in DICOM headers and `labels.csv`; in Kaggle's layout the one in the file names."""
    if layout == "flat":
        return f"PHANTOM-{case.number:04d}"
    return f"person{case.number}_{case.subtype}" if case.subtype else f"IM-{case.number:04d}"


def _file(shot: _Film, form: Format, *, patient_id: str, turn: int) -> bytes:
    if form != "dicom":
        return encode(shot.pixels, form)
    bits, photometric = _DICOM_KINDS[turn % len(_DICOM_KINDS)]
    return dicom_bytes(
        shot.pixels,
        bits=bits,
        photometric=photometric,
        patient_id=patient_id,
        study_date=f"{shot.day:%Y%m%d}",
    )
