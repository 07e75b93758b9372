"""A tunnel to a port of this machine, as `ssh -L` makes one, that can be cut."""

import contextlib
import socket
import threading
from collections.abc import Iterator

from tests.servers import free_port


class Tunnel:
    """Takes connections on `port` and hands on what comes, both ways."""

    def __init__(self, target: int) -> None:
        self.port, self._target = free_port(), target
        self._lock = threading.Lock()
        self._ends: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Cut every connection; the next ones are taken again."""
        with self._lock:
            for end in self._ends:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            self._ends.clear()

    def close(self) -> None:
        """Cut every connection, and take none any more."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                with self._lock:
                    self._ends += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=_hand_on, args=(source, sink), daemon=True).start()


def _hand_on(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError), source, sink:
        while data := source.recv(1 << 16):
            sink.sendall(data)


@contextlib.contextmanager
def tunnel_to(target: int) -> Iterator[Tunnel]:
    """One to this port, closed at the end."""
    tunnel = Tunnel(target)
    try:
        yield tunnel
    finally:
        tunnel.close()
