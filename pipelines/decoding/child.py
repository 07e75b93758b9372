"""A decoder in a child process, for bytes that may crash it, hang it or make it eat memory: that costs one film.

Parent and child talk on the child's standard input and output, one request at a time; a message is a JSON object and
bytes, each behind its length. The child watches itself: a request that takes more processor time than the deadline
ends it, even where C code holds the interpreter, and so does the end of its input. Time on the clock ends it only
after PATIENCE deadlines, when it sleeps or its machine is hopeless. None outlives its parent by more than that.
"""

import atexit
import faulthandler
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from typing import IO, Any, Final

from pipelines.contracts import Reason
from pipelines.errors import UnreadableScanError

Head = dict[str, Any]
"""Of a message: what JSON can say."""
Body = bytes | bytearray | memoryview

_LENGTHS: Final = struct.Struct(">QQ")
PATIENCE: Final = 10
"""Seconds on the clock for each second of processor time that a request may take."""


class DecoderChild:
    """A running `python -m MODULE`, whose `main` calls `serve`."""

    def __init__(self, module: str, *, deadline: float, memory: int) -> None:
        """Start it: `deadline` in seconds of processor time for one request, `memory` in bytes of address space."""
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        self._deadline = deadline
        self._process = subprocess.Popen(  # noqa: S603 (this very Python, a module of our own)
            [sys.executable, "-P", "-m", module, str(deadline), str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # decoders talk of every fault there
            env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
        )
        atexit.register(self.close)

    def ask(self, head: Head, body: Body = b"") -> tuple[Head, bytearray]:
        """The child's answer. Raises `UnreadableScanError` (crashed, timed_out, out_of_memory) when that ends it."""
        assert self._process.stdin
        assert self._process.stdout
        started = time.monotonic()
        try:
            _send(self._process.stdin, head, body)
            return _receive(self._process.stdout)
        except (EOFError, BrokenPipeError):
            raise UnreadableScanError(self._cause(time.monotonic() - started)) from None

    def close(self) -> None:
        """End it."""
        atexit.unregister(self.close)
        self._process.kill()
        try:
            self._process.communicate()
        except BrokenPipeError:
            self._process.wait()

    def _cause(self, seconds: float) -> Reason:
        code = self._process.wait()
        self.close()
        if code == -signal.SIGKILL:  # nobody else kills it: the machine ran out of memory
            return Reason.OUT_OF_MEMORY
        slept = code == 1 and seconds >= PATIENCE * self._deadline
        return Reason.TIMED_OUT if code == -signal.SIGPROF or slept else Reason.CRASHED


class DecoderChildren:
    """Children of one kind, as many as threads ask at a time. Safe to use from several threads."""

    def __init__(self, module: str, *, deadline: float, memory: int) -> None:
        self._start: Callable[[], DecoderChild] = lambda: DecoderChild(module, deadline=deadline, memory=memory)
        self.idle: list[DecoderChild] = []

    def ask(self, head: Head, body: Body = b"") -> tuple[Head, bytearray]:
        """An idle child's answer, or a new one's; raises as `DecoderChild.ask`."""
        try:
            child = self.idle.pop()
        except IndexError:  # asking first would let another thread take the last one in between
            child = self._start()
        answer = child.ask(head, body)
        self.idle.append(child)
        return answer

    def close(self) -> None:
        """End those that are idle."""
        while self.idle:
            self.idle.pop().close()


def serve(answer: Callable[[Head, bytearray], tuple[Head, Body]]) -> None:
    """The child's main: limit this process, then answer requests until the input ends.

    Decoders that print get nowhere: standard output is the answers' alone.
    """
    import resource  # noqa: PLC0415 (only the child limits itself)

    deadline, memory = sys.argv[1:]
    # A child's child, or one of a user with a limit, may not have more than that; asking for it would end this process.
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    allowed = int(memory) if most == resource.RLIM_INFINITY else min(int(memory), most)
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            request = _receive(sys.stdin.buffer)
        except EOFError:
            return
        # The timer of the process's own time; its signal ends the process, whatever code is running.
        signal.setitimer(signal.ITIMER_PROF, float(deadline))
        faulthandler.dump_traceback_later(PATIENCE * float(deadline), exit=True)
        _send(answers, *answer(*request))
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)


def _send(stream: IO[bytes], head: Head, body: Body) -> None:
    text = json.dumps(head).encode()
    stream.write(_LENGTHS.pack(len(text), len(body)) + text)
    stream.write(body)  # not put together first: it may be of a film's size
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[Head, bytearray]:
    """The next message. Raises `EOFError` when the other side is gone."""
    head, body = _LENGTHS.unpack(_exactly(stream, _LENGTHS.size))
    return json.loads(_exactly(stream, head)), _exactly(stream, body)


def _exactly(stream: IO[bytes], length: int) -> bytearray:
    data = bytearray(length)
    if stream.readinto(data) < length:  # type: ignore[attr-defined]
        raise EOFError
    return data
