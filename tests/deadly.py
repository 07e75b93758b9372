"""Films that kill the process which decodes them, for tests of isolation.

Real files that do so are faults of a decoder's version, and get mended. So a `sitecustomize` on the path of the
processes under test teaches their decoder to die on a few marked PNGs; all else is the real thing.
"""

from pathlib import Path

import numpy as np

from pipelines.phantom import encode

_MARK = b"rayscan-deadly:"
_FILM = encode(np.random.default_rng(1).integers(0, 255, (48, 48), dtype=np.uint8), "png")

DEADLY = {
    kind: _FILM + _MARK + kind.encode() + b";"
    for kind in ("abort", "segfault", "exit", "hang", "hang_in_c", "memory", "killed")
}
"""Kind of death -> a PNG with a mark behind its end, where decoders do not look."""

_SITECUSTOMIZE = """
import importlib.abc, importlib.util, sys

def _die(data):
    import ctypes, os, signal, time
    at = data.rfind(b"rayscan-deadly:")
    kind = data[at:].split(b":")[1].split(b";")[0].decode() if at >= 0 else ""
    if kind == "abort":
        os.abort()
    if kind == "segfault":
        ctypes.string_at(0)
    if kind == "exit":
        os._exit(137)
    if kind == "hang":
        while True:
            pass
    if kind == "hang_in_c":
        ctypes.PyDLL(None).sleep(3600)  # holds the interpreter's lock
    if kind == "memory":
        hoard = [bytes(64 << 20) for _ in range(400)]
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)

class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "pipelines.decoding.decode":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            whole = module.open_scan
            def open_scan(data):
                _die(data)
                return whole(data)
            module.open_scan = open_scan
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, _Finder())
"""


def deadly_environment(folder: Path) -> Path:
    """A folder to put first on PYTHONPATH."""
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    return folder
