"""Stops a trial's process at a chosen moment, so that a test can take its node away exactly then.

A `sitecustomize` on the path of a cluster's nodes watches what the workers import, and wraps the functions that a trial
passes. The first process that comes to the moment writes its number down and stands still until it is killed; all else
runs on as ever. The driver does not have it on its path.
"""

from pathlib import Path
from typing import Final

MOMENTS: Final = {
    "before its start": ("tuning.search.trial", "", ""),
    "in its first epoch": ("tuning.search.trial", "fit", "before"),
    "between checkpoint and report": ("tuning.search.trial", "save_checkpoint", "after"),
    "between the last epoch and its end": ("tuning.search.trial", "fit", "after"),
    "as the process takes the next trial": (
        "ray.tune.trainable.function_trainable", "FunctionTrainable.reset_config", "before",
    ),
}  # fmt: skip
"""Moment -> module, function in it (none: as the module is imported, before the trial's actor is there), and when."""

_SITECUSTOMIZE: Final = """
import importlib.abc, importlib.util, os, sys, threading
FOLDER, (MODULE, NAME, WHEN) = {folder!r}, {moment!r}

def stand_still():
    try:
        os.rename(FOLDER + "/armed", FOLDER + "/taken")
    except FileNotFoundError:  # another process was here first, or the test is not there yet
        return
    with open(FOLDER + "/written", "w") as file:
        file.write(str(os.getpid()))
    os.rename(FOLDER + "/written", FOLDER + "/process")
    while True:
        threading.Event().wait(3600)

def wrap(module):
    if not NAME:
        return stand_still()
    owner = module
    *outer, name = NAME.split(".")
    for one in outer:
        owner = getattr(owner, one)
    whole = getattr(owner, name)
    def wrapped(*args, **kwargs):
        if WHEN == "before":
            stand_still()
        result = whole(*args, **kwargs)
        if WHEN == "after":
            stand_still()
        return result
    setattr(owner, name, wrapped)

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            wrap(module)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


class Moment:
    """One of `MOMENTS`, for the processes whose PYTHONPATH begins with `folder`, which is empty."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        self.comes_once = not MOMENTS[name][1]
        """Whether a process passes it only before its first trial."""
        (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(folder=str(folder), moment=MOMENTS[name]))

    def arm(self) -> None:
        """The next process that comes to the moment stands still."""
        (self.folder / "armed").touch()

    @property
    def process(self) -> int | None:
        """The process that stands still; None: there is none yet."""
        place = self.folder / "process"
        return int(place.read_text()) if place.exists() else None
