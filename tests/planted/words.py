"""Words planted where patient data can stand, and the search that finds them again in whatever was written.

Each place gets a word, unique identifier, day or number of its own, so that a hit names the place that leaked. They are
of shapes that nothing else has: one pattern finds them all, in one pass over each file.
"""

import base64
import gzip
import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

_SHAPES: Final = re.compile(
    rb"QZ[0-9A-F]{8}"  # a word
    rb"|2\.25\.77\d{24}"  # a unique identifier
    rb"|(?<![0-9A-F])17\d\d(-?)\d\d\1\d\d(?![0-9A-F])"  # a day, as DICOM and as ISO write it
    rb"|(?<![0-9A-F.])19183\d{5}(?![0-9A-F])",  # a number
    re.IGNORECASE,
)
_DIGEST: Final = re.compile(rb"(?<![0-9a-f])[0-9a-f]{32,128}(?![0-9a-f])")
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/]{14,}={0,2}")
_IDEOGRAMS: Final = "鼈鼂齇龢鱻麤鸞鑿"
_FIRST_DAY: Final = date(1700, 1, 1)
DEEPEST: Final = 4
"""Containers within containers that are looked into."""


@dataclass
class Planted:
    """What stands where."""

    places: dict[str, str] = field(default_factory=dict)
    """Planted text, in capitals -> its place."""
    digests: dict[str, str] = field(default_factory=dict)
    """Hexadecimal hash that nobody needs a secret for -> the place of what was hashed."""
    _bytes: dict[bytes, str] = field(default_factory=dict)

    def word(self, place: str) -> str:
        """Ten letters and digits: they fit into any element of text."""
        return self._note(f"QZ{_digits(place, 8, 16)}", place)

    def uid(self, place: str) -> str:
        """A unique identifier (PS3.5 section 9)."""
        return self._note(f"2.25.77{_digits(place, 24, 10)}", place)

    def day(self, place: str) -> str:
        """A date in the eighteenth century, YYYYMMDD."""
        day = _FIRST_DAY + timedelta(days=len(self.places))
        assert day.year < 1800
        self._note(day.isoformat(), place)
        return self._note(day.strftime("%Y%m%d"), place)

    def number(self, place: str) -> str:
        """A decimal number that fits into 32 bits."""
        return self._note(f"19183{_digits(place, 5, 10)}", place)

    def ideograms(self, place: str, encoding: str) -> str:
        """Four characters of Chinese; what is found is them in this encoding of a file, in Unicode's and in JSON's."""
        number = int(_digits(place, 4, 8), 8)
        text = "".join(_IDEOGRAMS[number >> shift & 7] for shift in (0, 3, 6, 9))
        for written in (
            text.encode(),
            text.encode("utf-16-le"),
            text.encode("utf-16-be"),
            json.dumps(text)[1:-1].encode(),
            text.encode(encoding),
        ):
            self._bytes[written] = place
        return text

    def person(self, place: str) -> str:
        """A patient id. Its hashes without a secret are planted too: whoever has all ids can try them."""
        text = self.word(place)
        for hashed in (text, f"\0{text}"):
            for kind in ("md5", "sha1", "sha256", "blake2b", "blake2s"):
                self.digests[hashlib.new(kind, hashed.encode()).hexdigest()] = f"{kind} of {place}"
            self.digests[hashlib.blake2b(hashed.encode(), digest_size=16).hexdigest()] = f"blake2b-128 of {place}"
        return text

    def _note(self, text: str, place: str) -> str:
        other = self.places.setdefault(text.upper(), place)
        assert other == place, f"{place} and {other} got the same text"
        return text

    def in_bytes(self, data: bytes) -> set[str]:
        """Places whose planted text these bytes hold, in 8 or 16 bits a character."""
        found = set()
        for text in (data, data.replace(b"\0", b"")) if b"\0" in data else (data,):
            for match in _SHAPES.finditer(text):
                found.add(self.places.get(match[0].decode().upper(), ""))
            if self.digests:
                for match in _DIGEST.finditer(text):
                    found.add(self.digests.get(match[0].decode(), ""))
        found |= {place for written, place in self._bytes.items() if written in data}
        return found - {""}


def _digits(place: str, count: int, base: int) -> str:
    value = int.from_bytes(hashlib.sha256(place.encode()).digest())
    return "".join("0123456789ABCDEF"[value // base**power % base] for power in range(count))


@dataclass(frozen=True, order=True)
class Hit:
    """A place that leaked, and the file it leaked into."""

    place: str
    file: str


def leaks(
    folders: Collection[Path], planted: Planted, *, but: Collection[Path] = (), allowed: Collection[str] = ()
) -> list[Hit]:
    """Everything planted that stands in a file or in the name of one, below these folders and not below `but`.

    `allowed` are places that a user asked for.
    """
    hits = set()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if any(path.is_relative_to(inside) for inside in but):
                continue
            found = planted.in_bytes(str(path.relative_to(folder)).encode())
            if path.is_file() and not path.is_symlink():
                found |= found_in(path.read_bytes(), planted)
            hits |= {Hit(place, str(path)) for place in found if place not in allowed}
    return sorted(hits)


def found_in(data: bytes, planted: Planted, depth: int = 0) -> set[str]:
    """Places whose planted text stands in these bytes, or in what is packed in them."""
    found = planted.in_bytes(data)
    if depth < DEEPEST:
        for inner in _unpacked(data):
            found |= found_in(inner, planted, depth + 1)
    return found


def _unpacked(data: bytes) -> Iterator[bytes]:
    """The contents of Parquet, zip, gzip, zlib and zstd, and of what is written in base 64."""
    if data.startswith(b"PAR1"):
        table = pq.read_table(pa.BufferReader(data))
        yield json.dumps(table.to_pylist(), default=str, ensure_ascii=False).encode("utf-8", "surrogatepass")
        yield str(table.schema.metadata).encode()
    elif data.startswith(b"PK\3\4"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield " ".join(archive.namelist()).encode()
            for name in archive.namelist():
                yield archive.read(name)
    elif data.startswith(b"\x1f\x8b"):
        yield gzip.decompress(data)
    elif data.startswith(b"\x28\xb5\x2f\xfd"):
        yield pa.CompressedInputStream(pa.BufferReader(data), "zstd").read()
    elif data[:1] == b"x" and len(data) > 1 and int.from_bytes(data[:2]) % 31 == 0:
        try:
            yield zlib.decompress(data)
        except zlib.error:  # two bytes that look like a header
            return
    else:
        for match in _BASE64.finditer(data):
            text = match[0].rstrip(b"=")
            text = text[:-1] if len(text) % 4 == 1 else text  # no base 64 has such a length
            yield base64.b64decode(text + b"=" * (-len(text) % 4))
