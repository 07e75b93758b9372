"""JPEG lossless and JPEG-LS frames of DICOM files, decoded by GDCM in a child process.

They are common in hospital archives, and GDCM is the one decoder for them under a free licence. But it ends the whole
process (SIGABRT) on some malformed frames: fuzzing met one in a few hundred. In a child that costs one film, not a
worker and its shard; the round trip adds about a twentieth to the time of such a film.

A child serves one film at a time, by length-prefixed messages on its standard input and output; it ends when its input
does, so none outlives the process that started it.
"""

import atexit
import os
import struct
import subprocess
import sys
import threading
from io import BytesIO
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from pipelines.contracts import Reason
from pipelines.errors import UnreadableScanError

DEADLINE: Final = 60.0
"""Seconds for one film; a large one takes one."""
MEMORY: Final = 8 << 30
"""Bytes of address space: far above any film, below what would hurt the machine."""
_LENGTH: Final = struct.Struct(">Q")

Stored = npt.NDArray[np.integer[Any]]

_idle: list["_Child"] = []


def decode_lossless(data: bytes) -> Stored:
    """The stored values [height, width] of a DICOM file's one frame. Safe to call from several threads.

    Raises `UnreadableScanError` (corrupt) when GDCM refuses the frame, crashes on it or takes longer than `DEADLINE`.
    """
    try:
        child = _idle.pop()
    except IndexError:  # asking first would let another thread take the last one in between
        child = _Child()
    try:
        answer = child.ask(data)
    except (EOFError, BrokenPipeError):
        child.close()
        raise UnreadableScanError(Reason.CORRUPT) from None
    _idle.append(child)
    if not answer:
        raise UnreadableScanError(Reason.CORRUPT)
    pixels: Stored = np.load(BytesIO(answer), allow_pickle=False)
    return pixels


class _Child:
    def __init__(self) -> None:
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pipelines.ingest.lossless"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # GDCM talks of every fault there
            env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
        )
        atexit.register(self.close)

    def ask(self, data: bytes) -> bytes:
        assert self._process.stdin
        assert self._process.stdout
        watchdog = threading.Timer(DEADLINE, self._process.kill)
        watchdog.start()
        try:
            _send(self._process.stdin, data)
            return _receive(self._process.stdout)
        finally:
            watchdog.cancel()

    def close(self) -> None:
        atexit.unregister(self.close)
        self._process.kill()
        try:
            self._process.communicate()
        except BrokenPipeError:
            self._process.wait()


def _send(stream: IO[bytes], data: bytes) -> None:
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes:
    """The next message. Raises `EOFError` when the other side is gone."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


def _serve() -> None:
    """The child: answer each file with its stored values, or with nothing where they cannot be had."""
    import resource  # noqa: PLC0415 (only the child limits itself)

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # GDCM's own output must not get between the messages.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            data = _receive(sys.stdin.buffer)
        except EOFError:
            return
        _send(answers, _answer(data))


def _answer(data: bytes) -> bytes:
    from pipelines.ingest.dicom import MALFORMED, decode_frame, parse  # noqa: PLC0415 (they import this module)

    try:
        pixels = decode_frame(parse(data, pixels=True), "gdcm")
    except (UnreadableScanError, MemoryError, *MALFORMED):
        return b""
    out = BytesIO()
    np.save(out, pixels, allow_pickle=False)
    return out.getvalue()


if __name__ == "__main__":
    _serve()
