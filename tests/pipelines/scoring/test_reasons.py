"""Each reason that reading may give, from a scan that deserves it."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pydicom
import pytest

from models.bundle import Bundle
from models.engines.choice import Engine
from pipelines.contracts import STATUS_OF_REASON, Reason
from pipelines.decoding.film import read_film
from pipelines.phantom import broken_files, dicom_bytes, encode
from pipelines.scoring.films import FilmReader
from pipelines.scoring.score import infer
from pipelines.storage import open_store
from tests.pipelines.scoring.archive import of_class, reads
from tests.servers import S3Server

ISOLATED = {Reason.CRASHED, Reason.TIMED_OUT, Reason.OUT_OF_MEMORY, Reason.WORKER_LOST}
"""Told by the isolation of a shard that lost its worker; see test_isolation.py."""
SEEN = {Reason.INVERTED, Reason.ROTATED, Reason.CROPPED}
"""Told by pixels, of films larger than this model's."""
AFTERWARDS = {Reason.LEFT_ARCHIVE, Reason.UNFAMILIAR}
"""Told once the model has run, or by the plan."""
PIXELS = np.random.default_rng(6).integers(0, 255, (40, 48), dtype=np.uint8)


class TestReasons:
    """Each reason of the closed list, from a scan that deserves it."""

    @staticmethod
    def _corrupt_png() -> bytes:
        data = bytearray(encode(PIXELS, "png"))
        data[len(data) // 2] ^= 0xFF
        return bytes(data)

    @staticmethod
    def _huge_png() -> bytes:
        data = encode(PIXELS, "png")
        header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + data[24:29]
        return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]

    @staticmethod
    def _two_frames() -> bytes:
        dataset = pydicom.dcmread(BytesIO(dicom_bytes(PIXELS)))
        dataset.NumberOfFrames = 2
        dataset.PixelData *= 2
        out = BytesIO()
        dataset.save_as(out)
        return out.getvalue()

    @pytest.fixture
    def scans(
        self, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> dict[Reason, tuple[str, str, int]]:
        """Reason -> URI and etag of a scan."""
        store, damaged = open_store(str(tmp_path)), broken_files(2)
        good = dicom_bytes(PIXELS)
        contents = {
            Reason.EMPTY_FILE: b"",
            Reason.UNKNOWN_FORMAT: damaged["text_renamed.jpeg"],
            Reason.TRUNCATED: damaged["truncated.jpeg"],
            Reason.CORRUPT: self._corrupt_png(),
            Reason.NO_PIXELS: damaged["zero_size.png"],
            Reason.TOO_LARGE: self._huge_png(),
            Reason.UNSUPPORTED: self._two_frames(),
            Reason.NOT_IMAGE: of_class(PIXELS, "1.2.840.10008.5.1.4.1.1.88.11"),
            Reason.FOR_PROCESSING: of_class(PIXELS, "1.2.840.10008.5.1.4.1.1.1.1.1"),
            Reason.NOT_XRAY: dicom_bytes(PIXELS, modality="CT"),
            Reason.NOT_CHEST: dicom_bytes(PIXELS, body_part="HIP"),
            Reason.NOT_FRONTAL: dicom_bytes(PIXELS, view="LL"),
            Reason.OUTSIDE_INTENDED_USE: dicom_bytes(PIXELS, modality="CR"),
            Reason.BLANK: damaged["blank.png"],
            Reason.VANISHED: good,
            Reason.CHANGED: good,
            Reason.STORAGE_ERROR: good,
        }
        scans = {}
        for reason, data in contents.items():
            key = f"{reason.value}/scan"
            store.put(key, data)
            scans[reason] = (store.uri(key), store.head(key).etag, store.head(key).size)
        store.delete("vanished/scan")
        store.put("changed/scan", dicom_bytes(255 - PIXELS))
        store.delete("storage_error/scan")
        (tmp_path / "storage_error").rmdir()
        (tmp_path / "storage_error").write_text("a file where the path has a folder")
        remote = open_store(s3.bucket())
        remote.put("scan", good)
        scans[Reason.ACCESS_DENIED] = (remote.uri("scan"), remote.head("scan").etag, len(good))
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        return scans

    def test_each_reason_is_told(self, scans: dict[Reason, tuple[str, str, int]], model: Bundle) -> None:
        assert set(scans) == set(Reason) - ISOLATED - SEEN - AFTERWARDS
        films = {reason: read_film(*scan, reads(model)) for reason, scan in scans.items()}
        assert {reason: film.reason for reason, film in films.items()} == {reason: reason for reason in scans}
        assert all(film.pixels is None for film in films.values())
        assert all(film.fetch_seconds >= 0 and film.decode_seconds >= 0 for film in films.values())

    def test_each_becomes_a_row(
        self, scans: dict[Reason, tuple[str, str, int]], model: Bundle, engine: Engine, reader: FilmReader
    ) -> None:
        rows = pa.Table.from_pylist([dict(zip(("uri", "etag", "size"), scan, strict=True)) for scan in scans.values()])
        _, verdicts, seconds = infer(reader.read(rows), engine, 4)
        told = [(verdict.status, verdict.reason, verdict.classes) for verdict in verdicts]
        assert told == [(STATUS_OF_REASON[reason], reason, None) for reason in scans]
        assert seconds == 0
