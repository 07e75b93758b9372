"""JPEG lossless and JPEG-LS frames of DICOM files, decoded by GDCM in a child process.

They are common in hospital archives, and GDCM is the one decoder for them under a free licence. But it ends the whole
process (SIGABRT) on some malformed frames: fuzzing met one in a few hundred. In a child that costs one film, not a
worker and its shard; the round trip adds about a twentieth to the time of such a film.
"""

from collections.abc import Sequence
from io import BytesIO
from typing import Final

import numpy as np

from pipelines.contracts import Reason
from pipelines.decoding.child import DecoderChildren, serve
from pipelines.decoding.dicom_file import MALFORMED, decode_frame, parse
from pipelines.decoding.windowing import Stored
from pipelines.errors import UnreadableScanError

DEADLINE: Final = 60.0
"""Seconds for one film; a large one takes one."""
MEMORY: Final = 8 << 30
"""Bytes of address space: far above any film, below what would hurt the machine."""

_children = DecoderChildren("pipelines.decoding.lossless", deadline=DEADLINE, memory=MEMORY)


def decode_lossless(data: bytes) -> Stored:
    """The stored values [height, width] of a DICOM file's one frame. Safe to call from several threads.

    Raises `UnreadableScanError`: corrupt when GDCM refuses the frame, crashed or timed_out when it does not survive it.
    """
    answer = _children.ask(data)
    if not answer:
        raise UnreadableScanError(Reason.CORRUPT)
    pixels: Stored = np.load(BytesIO(answer), allow_pickle=False)
    return pixels


def _answer(data: bytes, _: Sequence[str]) -> bytes:
    """The child: the stored values, or nothing if they cannot be decoded."""
    try:
        pixels = decode_frame(parse(data, pixels=True), "gdcm")
    except (UnreadableScanError, MemoryError, *MALFORMED):
        return b""
    out = BytesIO()
    np.save(out, pixels, allow_pickle=False)
    return out.getvalue()


if __name__ == "__main__":
    serve(_answer)
