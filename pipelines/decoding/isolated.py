"""Read a film in a child process: for shards that lost a worker, where any film may be the one that killed it.

The child fetches the scan as well, so that a file too large for a machine's memory costs the child, too.
"""

from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from models.intended_use import IntendedUse
from models.spec import Preprocessing
from pipelines.contracts import Reason
from pipelines.decoding.child import DecoderChildren, serve
from pipelines.decoding.film import FilmResult, ReadSettings, read_film
from pipelines.errors import UnreadableScanError
from pipelines.provenance import Provenance

DEADLINE: Final = 60.0
"""Seconds of processor time for one film: a busy machine condemns none."""
MEMORY: Final = 4 << 30
"""Bytes of address space: several times what the largest film takes."""


class IsolatedReader:
    """`read_film`, in children that a film may end. Close it to end the idle ones."""

    def __init__(self, settings: ReadSettings, *, deadline: float = DEADLINE, memory: int = MEMORY) -> None:
        self._side = settings.preprocessing.film_size
        # With each request, not among the child's arguments: those anyone on the machine can read.
        self._settings = {**asdict(settings), "intended_use": settings.intended_use.to_json()}
        self._children = DecoderChildren("pipelines.decoding.isolated", deadline=deadline, memory=memory)

    def __call__(self, uri: str, etag: str, size: int) -> FilmResult:
        """As `read_film`; a deadly film has the reason crashed, timed_out or out_of_memory."""
        request = {"uri": uri, "etag": etag, "size": size, "settings": self._settings}
        try:
            values, pixels = self._children.ask(request)
        except UnreadableScanError as error:
            return FilmResult(reason=error.reason)
        if not values["decoded"]:
            return FilmResult.from_json(values, None)
        return FilmResult.from_json(values, np.frombuffer(pixels, dtype=np.uint8).reshape(self._side, self._side))

    def close(self) -> None:
        """End the children."""
        self._children.close()


def _answer(asked: dict[str, Any], _: bytearray) -> tuple[dict[str, Any], bytes]:
    """The child: the result without its pixels, and the grey levels."""
    settings = asked.pop("settings")
    settings["preprocessing"] = Preprocessing(**settings["preprocessing"])
    settings["provenance"] = Provenance(**settings["provenance"])
    settings["intended_use"] = IntendedUse.from_json(settings["intended_use"])
    try:
        film = read_film(**asked, settings=ReadSettings(**settings))
    except MemoryError:
        film = FilmResult(reason=Reason.OUT_OF_MEMORY)
    return film.to_json(), b"" if film.pixels is None else film.pixels.tobytes()


if __name__ == "__main__":
    with suppress(BrokenPipeError):  # the parent is gone
        serve(_answer)
