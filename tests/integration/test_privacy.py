"""Privacy by trying: words planted wherever a file can name a patient, verbs run over them, and all output searched.

`tests/chaos/test_planted.py` does the same with every verb.
"""

import base64
import gzip
import json
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.planted.verbs import check, hospital, one_night
from tests.planted.words import Hit, Planted, found_in, leaks


@pytest.fixture
def planted() -> Planted:
    return Planted()


WRITTEN = {
    "log": lambda word: f"WARNING could not read {word}: bad tag".encode(),
    "utf-16": lambda word: f"said {word}".encode("utf-16-le"),
    "parquet": lambda word: parquet(pa.array([None, f"of {word}"])),
    "parquet, in a list": lambda word: parquet(pa.array([[{"a": word.lower()}]])),
    "json": lambda word: json.dumps({"detail": [word]}).encode(),
    "gzip": lambda word: gzip.compress(b"x" * 999 + word.encode()),
    "zlib": lambda word: zlib.compress(b"x" * 999 + word.encode()),
    "page": lambda word: b'<img src="data:image/png;base64,' + base64.b64encode(b"\x89PNG..." + word.encode()) + b'">',
    "parquet in base 64": lambda word: b"=" + base64.b64encode(parquet(pa.array([word]))),
}


def parquet(column: pa.Array) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"c": column}), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("how", WRITTEN)
def test_the_search_finds_what_was_planted(how: str, planted: Planted, tmp_path: Path) -> None:
    word, _ = planted.word("PatientName"), planted.word("another")
    (tmp_path / "file").write_bytes(WRITTEN[how](word))
    assert leaks([tmp_path], planted) == [Hit("PatientName", str(tmp_path / "file"))]


def test_the_search_knows_days_numbers_identifiers_ideograms_and_hashes(planted: Planted) -> None:
    day, number, uid = planted.day("born"), planted.number("Rows"), planted.uid("StudyInstanceUID")
    for text in (day, f"{day[:4]}-{day[4:6]}-{day[6:]}", f'"width": {number}', f"{uid}.dcm"):
        assert found_in(text.encode(), planted)
    ideograms = planted.ideograms("PatientName", "gb18030")
    for data in (ideograms.encode("gb18030"), json.dumps(ideograms).encode(), parquet(pa.array([ideograms]))):
        assert found_in(data, planted) == {"PatientName"}
    planted.person("PatientID")
    assert {found for hexadecimal in planted.digests for found in found_in(hexadecimal.encode(), planted)} == set(
        planted.digests.values()
    )
    assert not found_in(b"nothing of it: 17640101 QZ00000000 2.25.77123 1918", planted)


def test_a_night_writes_says_and_shows_nothing_that_was_planted(rayscan_command: str) -> None:
    """In no output, cache, log, error, page, metric, file of Ray's or temporary file, and in no process's arguments."""
    with hospital(rayscan_command, films=8) as place:
        one_night(place)
        check(place, nights=["scores"])
