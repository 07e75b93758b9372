"""Whether scores are present at a URI, found out with a request or two.

A module of its own because it imports nothing heavy: `cluster/preflight.py` reports a wrong path before DuckDB, Ray or
torch is loaded.
"""

from collections.abc import Iterable

from pipelines.errors import InputError
from pipelines.storage import Store, open_store


def is_scores(uri: str) -> bool:
    """Whether a run was begun at this URI."""
    return has_runs(open_store(uri))


def has_runs(store: Store) -> bool:
    """Whether a run was begun in this store."""
    if store.is_local and not (store.path / "runs").is_dir():
        return False
    return any(chunk for chunk in store.list("runs"))


def unfinished_runs(keys: Iterable[str]) -> list[str]:
    """Ids of the runs that have a plan and no record, oldest first; `keys` are those of the objects below `runs/`."""
    names = set(keys)
    plans = sorted(key for key in names if key.endswith("/plan.json"))
    return [key.split("/")[1] for key in plans if key.replace("/plan.json", "/run.json") not in names]


def require_runs(uri: str) -> None:
    """Raise `InputError` unless a run was planned or recorded at this URI, `NotFoundError` if the folder is missing."""
    store = open_store(uri)
    names = (info.key for chunk in store.list("runs") for info in chunk)
    if not any(name.endswith(("/plan.json", "/run.json")) for name in names):
        raise no_run(store)


def no_run(store: Store) -> InputError:
    """The error for a store into which nothing was ever scored."""
    return InputError(f"{store.root}: no run was recorded here; score into it first, or check the path")


def require_scores(uri: str, model: str | None = None) -> None:
    """Raise `InputError` unless there are scores at this URI; of this model, if one is given."""
    store = open_store(uri)
    if model is not None and any(chunk for chunk in store.list(f"scores/model_id={model}")):
        return
    names = {info.key.split("/")[1] for chunk in store.list("scores") for info in chunk} if model else set()
    check_models(store, {name.removeprefix("model_id=") for name in names if name.startswith("model_id=")}, model)
    if model is None and not any(chunk for chunk in store.list("scores")):
        require_any(store)


def require_any(store: Store) -> None:
    """Raise `InputError` if no run was ever begun."""
    if not has_runs(store):
        raise InputError(f"{store.root}: no scores here; check the path")


def check_models(store: Store, models: set[str], model: str | None) -> None:
    """Raise `InputError` if a model is given that is not among `models`, those that have scored here."""
    if model is not None and model not in models:
        have = ", ".join(sorted(models)) or "none"
        raise InputError(f"{store.root}: no model {model!r} has scored here; there are {have}")
