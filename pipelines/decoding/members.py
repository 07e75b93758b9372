"""Scans inside containers: a member of a .zip or a .tar is a scan with a URI of its own, and read without unpacking.

    s3://bucket/batch.zip!/p1.dcm        the member p1.dcm of batch.zip
    s3://bucket/p1.dcm.gz                one compressed scan, under the name it has

The listing knows where each member lies and puts it into the member's etag, behind that of the container; so a fetch is
one read of a range, verifies the version of the container, and needs no directory:

    <etag>!z<header>-<stored>-<size>-<method>-<crc>   zip: offset of the local header, bytes stored, bytes inflated
    <etag>!t<start>-<size>                            tar: offset of the data
    <etag>!g<start>-<size>                            tar.gz: offset of the data in the inflated tar

Nothing is inflated further than the listing said and LIMIT allows, whatever the headers in the file say.
"""

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from pipelines.contracts import Reason
from pipelines.decoding.gzip_reader import AbsurdRatioError, GzipReader
from pipelines.errors import ScanError
from pipelines.storage import Store, split_uri

LIMIT: Final = 1 << 30
"""Bytes of the largest film."""
MOST_RATIO: Final = 200
"""How far a member may inflate beyond UNSUSPICIOUS bytes: a film of noise-free black may reach 1,000, a film of a
patient 20."""
UNSUSPICIOUS: Final = 64 << 20
_SLACK: Final = 1024
"""Bytes beside the data that a zip's local header usually stays within."""
_CONTAINER: Final = r"(?i)[^/]\.(zip|tar|tar\.gz|tgz)"
_MEMBER: Final = re.compile(rf"(.*?{_CONTAINER.removeprefix('(?i)')})!/(.+)", re.IGNORECASE | re.DOTALL)
CONTAINERS: Final = rf"{_CONTAINER}$"
"""Names of containers."""
COMPRESSED: Final = r"(?i)[^/]\.(jpe?g|png|dcm|dicom)\.gz$"
"""Names of single compressed scans."""

ReadRange = Callable[[int, int], bytes]


@dataclass(frozen=True)
class Place:
    """Where a member lies in its container."""

    kind: str
    """z, t or g."""
    numbers: tuple[int, ...]

    def etag(self, container: str) -> str:
        """The etag of the member, from that of its container."""
        return f"{container}!{self.kind}{'-'.join(f'{number:x}' for number in self.numbers)}"


def split_member(uri: str) -> tuple[str, str] | None:
    """The URI of the container and the name of the member; None for a scan that is a file of its own."""
    match = _MEMBER.fullmatch(uri) if "!/" in uri else None
    return (match[1], match[3]) if match else None


def is_compressed(uri: str) -> bool:
    """Whether a scan is a single gzip file."""
    return re.search(COMPRESSED, uri) is not None


def read_member(container: str, etag: str) -> bytes:
    """The bytes of a member.

    Raises `ScanError` with changed, truncated, corrupt or too_large, and what the store raises.
    """
    version, place = _parsed(etag)
    store, key = split_uri(container)
    if place.numbers[_SIZE[place.kind]] > LIMIT:
        raise ScanError(Reason.TOO_LARGE)
    if place.kind == "z":
        return _from_zip(_verified(store, key, version), place)
    start, size = place.numbers
    data = (
        _gzip(container, version).read(start, size)
        if place.kind == "g"
        else _verified(store, key, version)(start, size)
    )
    if len(data) < size:
        raise ScanError(Reason.TRUNCATED)
    return data


_SIZE: Final = {"z": 2, "t": 1, "g": 1}


def _parsed(etag: str) -> tuple[str, Place]:
    version, _, place = etag.rpartition("!")
    try:
        found = Place(place[:1], tuple(int(number, 16) for number in place[1:].split("-")))
        if len(found.numbers) != {"z": 5, "t": 2, "g": 2}[found.kind]:
            raise ValueError(place)
    except (ValueError, KeyError) as error:  # the etag of the file that had this name before
        raise ScanError(Reason.CHANGED) from error
    return version, found


def inflated(data: bytes) -> bytes:
    """A gzip file, inflated within LIMIT and MOST_RATIO. Raises `ScanError`."""
    most = min(LIMIT, max(UNSUSPICIOUS, MOST_RATIO * len(data)))
    inflate = zlib.decompressobj(wbits=31)
    try:
        made = inflate.decompress(data, most)
        if inflate.unconsumed_tail and not inflate.eof:
            raise ScanError(Reason.TOO_LARGE)
    except zlib.error as error:
        raise ScanError(Reason.CORRUPT) from error
    if not inflate.eof:
        raise ScanError(Reason.TRUNCATED)
    return made


def _from_zip(read: ReadRange, place: Place) -> bytes:
    header, stored, size, method, crc = place.numbers
    data = read(header, 30 + _SLACK + stored)
    if len(data) < 30 or data[:4] != b"PK\x03\x04":
        raise ScanError(Reason.CORRUPT if len(data) >= 30 else Reason.TRUNCATED)
    begin = 30 + int.from_bytes(data[26:28], "little") + int.from_bytes(data[28:30], "little")
    if begin > 30 + _SLACK:
        data, begin = read(header + begin, stored), 0
    data = data[begin : begin + stored]
    if len(data) < stored:
        raise ScanError(Reason.TRUNCATED)
    made = _inflated_raw(data, size) if method else data
    if len(made) != size or zlib.crc32(made) != crc:
        raise ScanError(Reason.CORRUPT)
    return made


def _inflated_raw(data: bytes, size: int) -> bytes:
    try:
        return zlib.decompressobj(wbits=-15).decompress(data, size + 1)
    except zlib.error as error:
        raise ScanError(Reason.CORRUPT) from error


def _verified(store: Store, key: str, version: str) -> ReadRange:
    """Reads ranges of one version of a container."""

    def read(start: int, length: int) -> bytes:
        data, found = store.get_range(key, start, length) if length else (b"", version)
        if found != version:
            raise ScanError(Reason.CHANGED)
        return data

    return read


@lru_cache(maxsize=4)
def _gzip(container: str, version: str) -> GzipReader:
    """One reader per container and process, so that only the first member read costs a pass over those before it."""
    return open_gzip(container, version)


def open_gzip(container: str, version: str) -> GzipReader:
    """A reader of the inflated bytes of a container of this version."""
    store, key = split_uri(container)
    size = store.head(key).size
    return GzipReader(_verified(store, key, version), size, most_ratio=MOST_RATIO, unsuspicious=UNSUSPICIOUS)


__all__ = [
    "LIMIT",
    "AbsurdRatioError",
    "GzipReader",
    "Place",
    "inflated",
    "is_compressed",
    "read_member",
    "split_member",
]
