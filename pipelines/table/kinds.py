"""What lies at a URI and where a page can go, by a request or two. Imports nothing heavy."""

from typing import Final, Literal

from pipelines.errors import InputError
from pipelines.storage import Store, open_store

MOST_THUMBNAILS: Final = 100

Kind = Literal["study", "bundle", "scores"]


def is_scores(uri: str) -> bool:
    """Whether scores lie at this URI."""
    return _has_runs(open_store(uri))


def _has_runs(store: Store) -> bool:
    if store.is_local and not (store.path / "runs").is_dir():
        return False
    return any(chunk for chunk in store.list("runs"))


def require_runs(uri: str) -> None:
    """Raise `InputError` unless a run was recorded at this URI, `NotFoundError` where there is not even a folder."""
    store = open_store(uri)
    names = (info.key for chunk in store.list("runs") for info in chunk)
    if not any(name.endswith(("/plan.json", "/run.json")) for name in names):
        raise no_run(store)


def no_run(store: Store) -> InputError:
    """Nothing was ever scored here."""
    return InputError(f"{store.root}: no run was recorded here; score into it first, or check the path")


def require_scores(uri: str, model: str | None = None) -> None:
    """Raise `InputError` unless there are scores at this URI, of this model where one is named."""
    store = open_store(uri)
    if model is not None and any(chunk for chunk in store.list(f"scores/model={model}")):
        return
    names = {info.key.split("/")[1] for chunk in store.list("scores") for info in chunk} if model else set()
    check_models(store, {name.removeprefix("model=") for name in names if name.startswith("model=")}, model)
    if model is None and not any(chunk for chunk in store.list("scores")):
        require_any(store)


def require_any(store: Store) -> None:
    """Raise `InputError` where no run was ever begun."""
    if not _has_runs(store):
        raise InputError(f"{store.root}: no scores here; check the path")


def check_models(store: Store, models: set[str], model: str | None) -> None:
    """Raise `InputError` where a model that is named is none of those that have scored here."""
    if model is not None and model not in models:
        have = ", ".join(sorted(models)) or "none"
        raise InputError(f"{store.root}: no model {model!r} has scored here; there are {have}")


def reported_kind(store: Store, compare: str | None, thumbnails: int) -> Kind:
    """What there is to report on. Raises `InputError` for nothing, and for what cannot be had of it."""
    kind: Kind | None = "study" if store.exists("study.json") else "bundle" if store.exists("bundle.json") else None
    if kind is None and not _has_runs(store):
        raise InputError(
            f"{store.root}: nothing to report on; looked for study.json (a study), bundle.json (a model) and"
            " runs/ (scores)"
        )
    if kind is not None and thumbnails:
        raise InputError(f"{store.root} is a {kind}; thumbnails can be had of scores only")
    if kind == "bundle" and compare is not None:
        raise InputError(f"{store.root} is a bundle; to compare models use rayscan evaluate --against")
    if kind is None and compare is not None:
        compared_models(compare)
        if thumbnails:
            raise InputError("thumbnails belong to the night report; leave out either them or the comparison")
    return kind or "scores"


def compared_models(compare: str) -> tuple[str, str]:
    """The two ids in `A,B`. Raises `InputError` for anything else."""
    models = [name.strip() for name in compare.split(",")]
    if len(models) != 2:
        raise InputError(f"--compare takes two model ids, as in --compare A,B; got {compare!r}")
    return models[0], models[1]


def page_place(out: str) -> tuple[Store, str]:
    """The store and the key a page is put at. Raises `InputError` when `out` is a folder or a bucket, and no file."""
    target = open_store(out)
    folder, _, name = target.root.rpartition("/")
    if out.endswith("/") or folder.endswith(":/") or (target.is_local and target.path.is_dir()):
        raise InputError(f"{out}: a report is one file; name it, as in {out.rstrip('/')}/report.html")
    return Store(folder), name


def check_thumbnails(number: int) -> None:
    """Raise `InputError` for a number of thumbnails that no page takes."""
    if not 0 <= number <= MOST_THUMBNAILS:
        raise InputError(f"{number} thumbnails are out of range; choose 0 to {MOST_THUMBNAILS}")
