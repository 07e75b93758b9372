"""One scan, from its place in the archive to a film for the model, or the reason there is none.

The order is: size, fetch, header, gate by header, pixels, gate by pixels. Each step is cheaper than the next, so that
what is no film for the model costs as little as can be. A fault of the scan is never an exception.
"""

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.gate.checks import check_pixels, check_tags
from models.intended_use import IntendedUse, ScanFacts
from models.spec import Preprocessing
from models.statistics.fingerprint import grey_statistics
from pipelines.contracts import Reason
from pipelines.decoding.columns import HeaderColumns, Identity
from pipelines.decoding.decode import open_scan
from pipelines.decoding.fetch import fetch
from pipelines.decoding.placeholders import is_placeholder
from pipelines.errors import RejectedScanError, ScanError, UnreadableScanError
from pipelines.provenance import Provenance

LARGEST_SCAN: Final = 1 << 30
"""Bytes of the largest file that is fetched. The largest films take a tenth of it."""
_STORE_FAILS: Final = {Reason.STORAGE_ERROR, Reason.ACCESS_DENIED}


@dataclass(frozen=True, kw_only=True)
class FilmResult:
    """The result of fetching and decoding one scan: pixels, or the reason there are none."""

    pixels: npt.NDArray[np.uint8] | None = None
    reason: Reason | None = None
    detail: str = ""
    """More on the reason: which transfer syntax, what kind of object. See `ScanError`."""
    columns: HeaderColumns = field(default_factory=HeaderColumns)
    """What the header says, where it could be read."""
    site: str | None = None
    patient_key: str | None = None
    identity: Identity | None = None
    grey: tuple[float, float] | None = None
    """Mean and standard deviation of the grey levels, if the film was decoded."""
    size: int = 0
    """Bytes fetched."""
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0
    told: str = ""
    """What the store said if it did not deliver the scan; empty for a scan in quarantine, which was not asked for."""

    def to_json(self) -> dict[str, Any]:
        """All but the pixels, as JSON has it."""
        values = {**asdict(replace(self, pixels=None)), "decoded": self.pixels is not None}
        day = self.columns.study_date
        values["columns"]["study_date"] = day and day.isoformat()
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any], pixels: npt.NDArray[np.uint8] | None) -> "FilmResult":
        """The inverse; `pixels` are those of a film that was `decoded`."""
        known = {**values, "pixels": pixels, "reason": values["reason"] and Reason(values["reason"])}
        del known["decoded"]
        known["grey"] = values["grey"] and tuple(values["grey"])
        day = values["columns"]["study_date"]
        known["columns"] = HeaderColumns(**{**values["columns"], "study_date": day and date.fromisoformat(day)})
        known["identity"] = values["identity"] and Identity(**values["identity"])
        return cls(**known)


@dataclass(frozen=True, kw_only=True)
class ReadSettings:
    """How scans are read."""

    preprocessing: Preprocessing
    provenance: Provenance = field(default_factory=Provenance)
    intended_use: IntendedUse = field(default_factory=IntendedUse)
    """Of the model; scans whose header says that they are others' are not decoded."""
    largest: int = LARGEST_SCAN
    """Bytes of the largest file that is fetched."""


def read_film(
    uri: str, etag: str, size: int, settings: ReadSettings, slot: AbstractContextManager[Any] | None = None
) -> FilmResult:
    """Fetch, decode and check one scan of so many bytes.

    `slot` is held while decoding: fetching waits for the store, decoding needs a core.
    """
    result = FilmResult(site=settings.provenance.site_of(uri, None))
    started = time.perf_counter()
    try:
        if size > settings.largest:
            raise UnreadableScanError(Reason.TOO_LARGE, f"{size / 2**30:.1f} GiB")
        data = fetch(uri, etag)
        result = replace(result, size=len(data), fetch_seconds=time.perf_counter() - started)
        with slot or nullcontext():
            return _decoded(data, uri, settings, result)
    except ScanError as error:
        # What a decoder says of a file may quote it.
        told = str(error.__cause__).removeprefix(f"{uri}: ") if error.reason in _STORE_FAILS else ""
        seconds = time.perf_counter() - started
        return replace(result, reason=error.reason, detail=error.detail, told=told, fetch_seconds=seconds)


def _decoded(data: bytes, uri: str, settings: ReadSettings, fetched: FilmResult) -> FilmResult:
    started = time.perf_counter()
    found: dict[str, Any] = {}
    try:
        scan = open_scan(data)
        site = settings.provenance.site_of(uri, scan.header)
        unknown = is_placeholder(scan.header.patient_id or "")
        key = None if unknown else settings.provenance.patient_of(scan.header, site)
        found |= {"columns": scan.header.columns, "identity": scan.header.identity, "site": site, "patient_key": key}
        _refuse(check_tags(scan.header.tags))
        _refuse_others(settings.intended_use, scan.header.columns, site)
        film = scan.film(settings.preprocessing)
        found["grey"] = grey_statistics(film.pixels)
        _refuse(check_pixels(film.judged))
        found["pixels"] = film.pixels
    except ScanError as error:
        found |= {"reason": error.reason, "detail": error.detail}
    return replace(fetched, **found, decode_seconds=time.perf_counter() - started)


def _refuse_others(use: IntendedUse, columns: HeaderColumns, site: str | None) -> None:
    """Raise for a scan of those the model was not made for; the detail names the limit, and nothing of the patient."""
    facts = ScanFacts(
        age_years=columns.age_years,
        view=columns.view,
        modality=columns.modality,
        presentation_intent=columns.presentation_intent,
        manufacturer=columns.manufacturer,
        site=site,
    )
    if limit := use.excludes(facts):
        raise RejectedScanError(Reason.OUTSIDE_INTENDED_USE, limit)


def _refuse(reason: str | None) -> None:
    if reason:
        raise RejectedScanError(Reason(reason))
