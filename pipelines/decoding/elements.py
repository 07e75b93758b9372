"""Values of DICOM elements, read as tolerantly as viewers read them.

Hospitals' files hold commas for decimal points, text where a number belongs and several values of which the first is
empty. What is no number counts as absent: pydicom would raise, and the film would be lost for a value nobody needs.
"""

import math
import re
import struct
from collections.abc import Iterator
from datetime import date, datetime
from typing import Final, cast

from pydicom import Dataset
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.multival import MultiValue
from pydicom.tag import Tag

_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_CODE: Final = re.compile(r"[\w /.-]{1,32}", re.ASCII)
"""What a code string may look like. A name that ended up in such a tag has carets."""
_MOST_TOLD: Final = 9999
_BINARY: Final = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "US or SS": "H"}
"""Value representations of binary numbers (PS3.5 section 6.2) -> their `struct` formats."""


def numbers(dataset: Dataset, keyword: str) -> list[float | None]:
    """The values of an element in order; None for each that is no finite number. Empty if it is absent."""
    item = _element(dataset, keyword)
    if item is None:
        return []
    if isinstance(item, RawDataElement):
        value = item.value or b""
        vr = _representation(item)
        if vr in _BINARY:
            order = "<" if item.is_little_endian else ">"
            kind = _BINARY[vr]
            count = len(value) // struct.calcsize(order + kind)
            found = struct.unpack_from(f"{order}{count}{kind}", value)
            return [float(number) if math.isfinite(number) else None for number in found]
        return [_number(text) for text in value.decode("latin-1").split("\\")] if value else []
    values = item.value if isinstance(item.value, MultiValue) else [item.value]
    return [_number(str(one)) for one in values if one is not None]


def number(dataset: Dataset, keyword: str) -> float | None:
    """The first usable value of an element; None if there is none."""
    return next((value for value in numbers(dataset, keyword) if value is not None), None)


def whole(dataset: Dataset, keyword: str) -> int | None:
    """The same as an integer."""
    value = number(dataset, keyword)
    return None if value is None else int(value)


def told(count: int, what: str) -> str:
    """A count that may be written, as `2 frames`. A number that no film has is not told: it may be a date or an id."""
    return f"{count} {what}" if 0 <= count <= _MOST_TOLD else f"too many {what}"


def text(dataset: Dataset, keyword: str) -> str | None:
    """The values of a text element joined by blanks; None where it is empty or absent."""
    value = dataset.get(keyword)
    words = [value] if isinstance(value, str) else list(value or ())
    return " ".join(str(word) for word in words).strip(" \0") or None


def code(dataset: Dataset, keyword: str) -> str | None:
    """A code string; None for what cannot be one."""
    value = text(dataset, keyword)
    return value if value and _CODE.fullmatch(value) else None


def photometric(dataset: Dataset) -> str:
    """PhotometricInterpretation (PS3.3 C.7.6.3.1.2); MONOCHROME2 where the header forgot it."""
    return (text(dataset, "PhotometricInterpretation") or "MONOCHROME2").upper()


def day(dataset: Dataset, keyword: str) -> date | None:
    """A date, also in the old form with points; None for what is no day."""
    digits = (text(dataset, keyword) or "").replace(".", "")
    if len(digits) != 8:  # strptime would read 2024229 as some day, too
        return None
    try:
        return datetime.strptime(digits, "%Y%m%d").date()
    except ValueError:
        return None


def items(dataset: Dataset, keyword: str) -> Iterator[Dataset]:
    """The items of a sequence; none where it is absent or no sequence."""
    value = dataset.get(keyword)
    if value and not isinstance(value, str | bytes):
        yield from (item for item in value if isinstance(item, Dataset))


def raw_bytes(dataset: Dataset, keyword: str) -> tuple[bytes, bool]:
    """The bytes of an element as they lie in the file, and whether they are little endian; whatever its VR."""
    item = _element(dataset, keyword)
    if isinstance(item, RawDataElement):
        return item.value or b"", item.is_little_endian
    return (item.value, True) if item is not None and isinstance(item.value, bytes) else (b"", True)


def _element(dataset: Dataset, keyword: str) -> DataElement | RawDataElement | None:
    """An element, raw where nobody has asked for its value yet."""
    tag = Tag(keyword)
    # pydicom's types leave out that elements may be raw.
    return cast("DataElement | RawDataElement", dataset.get_item(tag)) if tag in dataset else None


def _representation(item: RawDataElement) -> str:
    """The VR; the standard's where the file does not say it (implicit) or does not know it (UN)."""
    return item.VR if item.VR and item.VR != "UN" else dictionary_VR(item.tag)


def _number(value: str) -> float | None:
    """A decimal string (PS3.5 section 6.2), with a comma for the point where a country writes it so."""
    stripped = value.strip(" \0\t\r\n").replace(",", ".")
    if not _NUMBER.fullmatch(stripped):
        return None
    number = float(stripped)
    return number if math.isfinite(number) else None
