"""Decode a film in a child process: for shards that lost a worker, where any film may be the one that killed it."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Final

import numpy as np

from models.gate.checks import ScanTags
from models.spec import Preprocessing
from pipelines.contracts import Reason
from pipelines.decoding.child import DecoderChildren, serve
from pipelines.decoding.decode import Scan, decode
from pipelines.decoding.dicom import Header
from pipelines.errors import UnreadableScanError

DEADLINE: Final = 60.0
"""Seconds for one film."""
MEMORY: Final = 4 << 30
"""Bytes of address space: several times what the largest film takes."""


class IsolatedDecoder:
    """`decode`, in children that a film may end. Close it to end the idle ones."""

    def __init__(self, preprocessing: Preprocessing, *, deadline: float = DEADLINE, memory: int = MEMORY) -> None:
        self._side = preprocessing.film_size
        self._children = DecoderChildren(
            "pipelines.decoding.isolated", json.dumps(asdict(preprocessing)), deadline=deadline, memory=memory
        )

    def __call__(self, data: bytes) -> Scan:
        """As `decode`, and raises `UnreadableScanError` (crashed, timed_out, out_of_memory) for a deadly film.

        The header has format, size and tags only.
        """
        head, _, pixels = self._children.ask(data).partition(b"\n")
        answer = json.loads(head)
        if "reason" in answer:
            raise UnreadableScanError(Reason(answer["reason"]))
        return Scan(
            pixels=np.frombuffer(pixels, dtype=np.uint8).reshape(self._side, self._side),
            header=Header(**{**answer, "tags": ScanTags(**answer["tags"])}),
        )

    def close(self) -> None:
        """End the children."""
        self._children.close()


def _answer(data: bytes, arguments: Sequence[str]) -> bytes:
    """The child: one line of JSON, the reason or the header; then the grey levels."""
    preprocessing = Preprocessing(**json.loads(arguments[0]))
    try:
        scan = decode(data, preprocessing)
    except UnreadableScanError as error:
        return json.dumps({"reason": error.reason.value}).encode()
    except MemoryError:
        return json.dumps({"reason": Reason.OUT_OF_MEMORY.value}).encode()
    header = scan.header
    answer = {"format": header.format, "width": header.width, "height": header.height, "tags": asdict(header.tags)}
    return json.dumps(answer).encode() + b"\n" + scan.pixels.tobytes()


if __name__ == "__main__":
    with suppress(BrokenPipeError):  # the parent is gone
        serve(_answer)
