"""DICOM files written element by element, as they come: pydicom refuses, converts or complains of what is malformed."""

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import pydicom
from pydicom import uid
from pydicom.dataset import FileDataset
from pydicom.tag import BaseTag, Tag

from tests.pipelines.decoding.films import saved

_LONG: Final = {"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"}
"""Value representations whose length takes four bytes (PS3.5 section 7.1.2)."""
_WORDS: Final = {"US", "OW"}
Element = tuple[str, bytes]
"""Value representation, and the value little endian."""


@dataclass
class RawFile:
    """Elements of meta information and of the data set, by tag."""

    meta: dict[BaseTag, Element]
    body: dict[BaseTag, Element]
    preamble: bytes = bytes(128)

    @classmethod
    def of(cls, file: FileDataset) -> "RawFile":
        """What pydicom writes of a file, uncompressed and explicit little endian."""
        read = pydicom.dcmread(BytesIO(saved(file)))
        parts = []
        for part in (read.file_meta, read):
            elements = {}
            for tag in part.keys():  # noqa: SIM118 (iterating it would read the values)
                raw = part.get_item(tag)
                value = raw.value if isinstance(raw.value, bytes) else str(raw.value).encode()
                elements[tag] = raw.VR, value
            parts.append(elements)
        meta, body = parts
        meta.pop(Tag(0x0002, 0x0000), None)
        return cls(meta=meta, body=body)

    def put(self, tag: str | BaseTag, vr: str, value: str | bytes | Iterable["RawFile"]) -> "RawFile":
        """Set an element, whatever its value is; of a sequence the value is its items."""
        if isinstance(value, str):
            value = value.encode()
        elif not isinstance(value, bytes):
            items = (item.encoded(uid.ExplicitVRLittleEndian) for item in value)
            value = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items)
        part = self.meta if Tag(tag).group == 2 else self.body
        part[Tag(tag)] = vr, value
        return self

    def drop(self, tag: str) -> "RawFile":
        """Remove an element."""
        del self.body[Tag(tag)]
        return self

    def encoded(self, syntax: str) -> bytes:
        """The data set. Items of sequences stay explicit little endian."""
        return b"".join(_element(tag, *self.body[tag], syntax) for tag in sorted(self.body))

    def data(self, syntax: str = uid.ExplicitVRLittleEndian, named: str | None = None) -> bytes:
        """The whole file in one of DICOM's four uncompressed syntaxes, `named` so or otherwise."""
        self.put("TransferSyntaxUID", "UI", named or syntax)
        meta = b"".join(_element(tag, *self.meta[tag], uid.ExplicitVRLittleEndian) for tag in sorted(self.meta))
        length = _element(Tag(0x0002, 0x0000), "UL", struct.pack("<I", len(meta)), uid.ExplicitVRLittleEndian)
        body = self.encoded(syntax)
        if syntax == uid.DeflatedExplicitVRLittleEndian:
            deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
            body = deflate.compress(body) + deflate.flush()
        return self.preamble + b"DICM" + length + meta + body


def _element(tag: BaseTag, vr: str, value: bytes, syntax: str) -> bytes:
    value += (b"\0" if vr in {"UI", "OB", "UN"} else b" ") * (len(value) % 2)
    if syntax == uid.ImplicitVRLittleEndian:
        return struct.pack("<HHI", tag.group, tag.element, len(value)) + value
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    if order == ">" and vr in _WORDS:
        value = b"".join(value[place : place + 2][::-1] for place in range(0, len(value), 2))
    head = struct.pack(f"{order}HH", tag.group, tag.element) + vr.encode()
    if vr in _LONG:
        return head + struct.pack(f"{order}xxI", len(value)) + value
    return head + struct.pack(f"{order}H", len(value)) + value
