"""HTJ2K frames, decoded in a child: damaged ones make OpenJPH divide by zero (SIGFPE), which would end a worker.

Found by fuzzing, 5 of 82,000 mutated films of all kinds; no other codec ended its process.
"""

from contextlib import suppress
from typing import Any, Final, cast

import imagecodecs
import numpy as np
import numpy.typing as npt

from pipelines.contracts import Reason
from pipelines.decoding.child import DecoderChildren, serve
from pipelines.errors import UnreadableScanError

DEADLINE: Final = 10.0
"""Seconds of processor time for one frame: ten times what the largest take. Some damaged ones never end."""
MEMORY: Final = 4 << 30
"""Bytes of address space."""

_CHILDREN: Final = DecoderChildren("pipelines.decoding.htj2k", deadline=DEADLINE, memory=MEMORY)
"""As many as threads that decode at a time; they end with this process."""


def decode_htj2k(frame: bytes, skipped: int = 0) -> npt.NDArray[np.integer[Any]]:
    """Stored values [height, width] or [height, width, 3], `skipped` of the highest resolutions left out.

    Raises `UnreadableScanError` (corrupt; crashed, timed_out or out_of_memory if it ended the child), `MemoryError`.
    """
    told, values = _CHILDREN.ask({"skipped": skipped}, frame)
    if "fault" in told:
        if told["fault"] == MemoryError.__name__:
            raise MemoryError
        raise UnreadableScanError(Reason.CORRUPT)
    kind = cast("np.dtype[np.integer[Any]]", np.dtype(told["dtype"]))
    return np.frombuffer(values, kind).reshape(told["shape"])


def _answer(asked: dict[str, Any], frame: bytearray) -> tuple[dict[str, Any], bytes | memoryview]:
    """The child: what the array is, or what was wrong; and its values."""
    try:
        values = imagecodecs.htj2k_decode(frame, skipres=asked["skipped"])
    except Exception as error:  # noqa: BLE001 (the parent is told, and makes it a reason)
        return {"fault": type(error).__name__}, b""
    return {"dtype": values.dtype.str, "shape": values.shape}, values.data.cast("B")


if __name__ == "__main__":
    with suppress(BrokenPipeError):  # the parent is gone
        serve(_answer)
