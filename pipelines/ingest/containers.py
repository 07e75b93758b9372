"""The members of a container as objects of the listing; what must not be followed is refused and counted.

A zip is known from its directory, two or three reads of ranges whatever its size. A tar has none: its headers are read
one by one, a range each. A .tar.gz is inflated once from the start to the end.
"""

import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from io import RawIOBase
from typing import Any, Final

from pipelines.contracts import Reason
from pipelines.decoding.members import LIMIT, MOST_RATIO, UNSUSPICIOUS, AbsurdRatioError, Place, open_gzip, split_member
from pipelines.errors import AccessError, NotFoundError, ScanError
from pipelines.ingest.ignored import Ignored
from pipelines.storage import ObjectInfo, split_uri

AHEAD: Final = 64 << 10
"""Bytes read at a time where headers are looked for."""
MOST_READ: Final = 256 << 20
"""Bytes of the largest directory."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_NESTED: Final = re.compile(r"\.(zip|tar|tgz|gz|bz2|xz|7z|rar|zst)$", re.IGNORECASE)
_DAMAGED: Final = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, NotImplementedError, ValueError, EOFError,
    OverflowError, RecursionError, KeyError, IndexError, ScanError, AccessError, NotFoundError,
)  # fmt: skip
"""What zipfile and tarfile raise for rubbish, and the store for a container that may not be read."""


def members(uri: str, info: ObjectInfo, ignored: Ignored) -> list[dict[str, Any]]:
    """The members of a container that may be scans, as rows of OBJECTS; names of `info.key` are those of the rows.

    Raises `StorageError` when the store fails.
    """
    found: dict[str, dict[str, Any]] = {}
    try:
        for name, size, place in _found(uri, info, ignored):
            key = f"{info.key}!/{name}"
            if key in found:
                ignored.add("repeated_member", key)
            found[key] = {"key": key, "size": size, "etag": place.etag(info.etag), "modified": info.modified}
    except AbsurdRatioError:
        ignored.add("absurd_ratio", info.key)
    except _DAMAGED:
        ignored.add("damaged_container", info.key)
    return list(found.values())


def look_up(uri: str) -> ObjectInfo | None:
    """A member by its URI, with a key that is none of a store; None if the URI is not that of a member.

    Raises `NotFoundError` if its container has no such member.
    """
    parts = split_member(uri)
    if not parts:
        return None
    store, key = split_uri(parts[0])
    info = store.head(key)
    row = _by_name(parts[0], info).get(f"{info.key}!/{parts[1]}")
    if row is None:
        raise NotFoundError(f"{uri}: there is no such member")
    return ObjectInfo(**row)


@lru_cache(maxsize=8)
def _by_name(uri: str, info: ObjectInfo) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in members(uri, info, Ignored())}


def _found(uri: str, info: ObjectInfo, ignored: Ignored) -> Iterator[tuple[str, int, Place]]:
    store, key = split_uri(uri)
    lower = uri.lower()
    if lower.endswith((".tar.gz", ".tgz")):
        reader = open_gzip(uri, info.etag)
        return _in_tar(_Ranges(reader.read, 1 << 62), "g", info, ignored)

    def read(start: int, length: int) -> bytes:
        data, version = store.get_range(key, start, length)
        if version != info.etag:
            raise ScanError(Reason.CHANGED)
        return data

    ranges = _Ranges(read, info.size)
    return _in_zip(ranges, info, ignored) if lower.endswith(".zip") else _in_tar(ranges, "t", info, ignored)


def _in_zip(ranges: "_Ranges", info: ObjectInfo, ignored: Ignored) -> Iterator[tuple[str, int, Place]]:
    with zipfile.ZipFile(ranges) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            if refusal := _refused_name(member.orig_filename) or _refused_in_zip(member):
                ignored.add(refusal, f"{info.key}!/{member.orig_filename}")
                continue
            numbers = (
                member.header_offset, member.compress_size, member.file_size, member.compress_type, member.CRC,
            )  # fmt: skip
            yield member.filename, member.file_size, Place("z", numbers)


def _refused_in_zip(member: zipfile.ZipInfo) -> str | None:
    mode = member.external_attr >> 16
    if member.create_system == 3 and stat.S_IFMT(mode) not in {0, stat.S_IFREG}:
        return "link_member"
    if member.flag_bits & 1:
        return "encrypted_member"
    if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        return "unsupported_member"
    if member.file_size > max(UNSUSPICIOUS, MOST_RATIO * member.compress_size):
        return "absurd_ratio"
    return "too_large" if max(member.file_size, member.compress_size) > LIMIT else None


def _in_tar(ranges: "_Ranges", kind: str, info: ObjectInfo, ignored: Ignored) -> Iterator[tuple[str, int, Place]]:
    with tarfile.open(fileobj=ranges, mode="r:") as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps all it has seen
            if member.isdir():
                continue
            if refusal := _refused_name(member.name) or _refused_in_tar(member):
                ignored.add(refusal, f"{info.key}!/{member.name}")
                continue
            yield member.name.removeprefix("./"), member.size, Place(kind, (member.offset_data, member.size))


def _refused_in_tar(member: tarfile.TarInfo) -> str | None:
    if not member.isreg() or member.issparse():
        return "link_member" if not member.isreg() else "unsupported_member"
    return "too_large" if member.size > LIMIT else None


def _refused_name(name: str) -> str | None:
    """The kind of Ignored of a name that must not become a URI, and of a container in a container."""
    if _CONTROL.search(name):
        return "control_character"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "not_utf8"
    parts = name.replace("\\", "/").removeprefix("./").split("/")
    if ".." in parts or "." in parts or "" in parts or re.match(r"[a-zA-Z]:", name):
        return "unsafe_member"
    return "nested_container" if _NESTED.search(name) else None


class _Ranges(RawIOBase):
    """A file for zipfile and tarfile, read from ranges, AHEAD bytes at a time."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._fetch = read
        self._size = size
        self._at = 0
        self._block = (0, b"")

    def seekable(self) -> bool:
        """It is."""
        return True

    def readable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move. Raises `ValueError` for a place before the start."""
        self._at = offset + (0, self._at, self._size)[whence]
        if self._at < 0:
            raise ValueError("before the start of the file")
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Bytes from here, fewer at the end."""
        wanted = self._size - self._at if size is None or size < 0 else min(size, self._size - self._at)
        if wanted <= 0:
            return b""
        if wanted > MOST_READ:
            raise ValueError("a directory larger than any is")
        begin, block = self._block
        if not (begin <= self._at and self._at + wanted <= begin + len(block)):
            block = self._fetch(self._at, min(max(wanted, AHEAD), self._size - self._at))
            begin, self._block = self._at, (self._at, block)
        data = block[self._at - begin : self._at - begin + wanted]
        self._at += len(data)
        return data
