"""Which model is in force: a record, beside the scores, of who promoted what, when and why.

    SCORES/models/00000001.json, 00000002.json, …      create-only; never changed, never deleted

A model is candidate, shadow or production. One model has a role until another gets it; a model that rises leaves the
role it had. A rollback is an entry, too: production is again the model before. So "which model was in force on 3 March"
has one answer, by the store's clock, whatever was promoted since.

Two promotions at once are both recorded, one after the other. On a store without conditional put, where one of them
could overwrite the other, an entry's name has a random end; entries of one number are ordered by it.

Imports nothing heavy: `cluster/preflight.py` looks up the model in force before DuckDB, Ray or torch is loaded.
"""

import getpass
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from secrets import token_hex
from typing import Final, Literal, get_args

from pipelines.bundles import fetch_bundle
from pipelines.errors import BundleError, InputError, NotFoundError, StorageError
from pipelines.storage import Store, open_store

Role = Literal["candidate", "shadow", "production"]
Action = Literal["promote", "rollback"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
"""From the lowest to the highest."""
USER_VARIABLE: Final = "RAYSCAN_USER"
ATTEMPTS: Final = 50
_FOLDER: Final = "models"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One decision."""

    number: int
    action: Action
    role: Role
    model_id: str
    bundle: str
    """URI the model was at."""
    name: str
    """Of the model, for people."""
    who: str
    why: str
    at: datetime
    """By the store's clock; UTC. Never before the entry before."""


@dataclass(frozen=True, kw_only=True)
class Period:
    """How long a decision held."""

    entry: Entry
    until: datetime | None
    """None: it still holds."""


def promote(uri: str, bundle_uri: str, role: Role, *, who: str = "", why: str = "", name: str = "") -> Entry:
    """Give a model a role at the scores of `uri`, and record it; returns the entry.

    Raises `BundleError` if the bundle is not whole, `InputError` if the model has the role already or is in production
    and would lose it without a successor.
    """
    bundle = fetch_bundle(bundle_uri)
    store = open_store(uri)
    held = roles(read_entries(store))
    if role in held and held[role].model_id == bundle.model_id and held[role].bundle == open_store(bundle_uri).root:
        raise InputError(f"model {bundle.model_id} is {role} here already, since {held[role].at:%Y-%m-%d %H:%M} UTC")
    if role != "production" and "production" in held and held["production"].model_id == bundle.model_id:
        raise InputError(
            f"model {bundle.model_id} is in production here; promote another to production first, or roll back"
        )
    return _append(
        store,
        Entry(
            number=0,
            action="promote",
            role=role,
            model_id=bundle.model_id,
            bundle=open_store(bundle_uri).root,
            name=name or bundle.name,
            who=who or this_user(),
            why=why,
            at=datetime.min.replace(tzinfo=UTC),
        ),
    )


def rollback(uri: str, *, who: str = "", why: str = "") -> Entry:
    """Make the model before the one in production the one in production again, and record it; returns the entry.

    Raises `InputError` when there is none, `BundleError` when its bundle is gone or changed.
    """
    store = open_store(uri)
    line = _succession(read_entries(store))
    if len(line) < 2:
        state = f"model {line[0].model_id} is the first one here" if line else "no model is in production here"
        raise InputError(f"{store.root}: nothing to roll back to: {state}")
    require_bundle(line[-2])
    return _append(store, replace(line[-2], action="rollback", who=who or this_user(), why=why))


def bundle_in_role(uri: str, role: Role) -> str:
    """URI of the bundle of the model that has this role at the scores of `uri`.

    Raises `InputError` when no model has it, `BundleError` when another model is at that URI by now.
    """
    store = open_store(uri)
    entry = roles(read_entries(store)).get(role)
    if entry is None:
        raise InputError(
            f"{store.root}: no model is {role} here; name one with: rayscan promote SCORES BUNDLE --as {role}"
        )
    require_bundle(entry)
    return entry.bundle


def require_bundle(entry: Entry) -> None:
    """Raise `BundleError` unless the bundle that an entry names is there and is the model it was."""
    found = fetch_bundle(entry.bundle).model_id
    if found != entry.model_id:
        raise BundleError(
            f"{entry.bundle} holds model {found} now, and {entry.model_id} was promoted from there; restore it,"
            " or promote the new one"
        )


def read_entries(store: Store) -> list[Entry]:
    """All entries, in their order. Raises `InputError` for one that is damaged."""
    if store.is_local and not (store.path / _FOLDER).is_dir():
        return []
    keys = sorted(info.key for chunk in store.list(_FOLDER) for info in chunk if info.key.endswith(".json"))
    return [_read(store, key) for key in keys]


def periods(entries: Sequence[Entry]) -> list[Period]:
    """Each entry, in order, with the time until which its model had the role by it."""
    ended: dict[int, datetime] = {}
    held: dict[Role, int] = {}
    for place, entry in enumerate(entries):
        for role in _left(entry, {role: entries[holder] for role, holder in held.items()}):
            ended[held.pop(role)] = entry.at
        held[entry.role] = place
    return [Period(entry=entry, until=ended.get(place)) for place, entry in enumerate(entries)]


def roles(entries: Sequence[Entry], at: datetime | None = None) -> dict[Role, Entry]:
    """The entry by which each role is held at a time; None: now. Roles that no model has are absent."""
    return {
        period.entry.role: period.entry
        for period in periods(entries)
        if (at is None or period.entry.at <= at) and (period.until is None or (at is not None and at < period.until))
    }


def role_of(entries: Sequence[Entry], model_id: str) -> Entry | None:
    """The entry by which a model has a role now, the highest if it has several; None: it has none."""
    held = roles(entries)
    return next((held[role] for role in reversed(ROLES) if role in held and held[role].model_id == model_id), None)


def this_user() -> str:
    """Who is at work: RAYSCAN_USER, else user@host."""
    return os.environ.get(USER_VARIABLE) or f"{getpass.getuser()}@{socket.gethostname()}"


def _left(entry: Entry, held: dict[Role, Entry]) -> list[Role]:
    """The roles that are vacated by an entry: its own, and the lower ones its model had."""
    lower = ROLES[: ROLES.index(entry.role)]
    return [r for r, holder in held.items() if r == entry.role or (r in lower and holder.model_id == entry.model_id)]


def _succession(entries: Sequence[Entry]) -> list[Entry]:
    """The models in production, each the one to go back to from the next; the last is in production now.

    Two rollbacks that were decided at once go back once: both name the same model.
    """
    line: list[Entry] = []
    for entry in entries:
        if entry.role != "production":
            continue
        if entry.action == "rollback":
            known = [place for place, earlier in enumerate(line) if earlier.model_id == entry.model_id]
            line = line[: known[-1]] if known else []
        elif line and line[-1].model_id == entry.model_id:
            line.pop()  # the same model, at another place
        line.append(entry)
    return line


def _append(store: Store, entry: Entry) -> Entry:
    """Write an entry behind all others; returns it with its number and time."""
    unique = store.has_conditional_put()
    for _ in range(ATTEMPTS):
        before = read_entries(store)
        number = before[-1].number + 1 if before else 1
        # A store's clock may be set back, and the entries must still follow each other.
        at = max([store.clock(), *(earlier.at for earlier in before[-1:])])
        written = replace(entry, number=number, at=at)
        key = f"{_FOLDER}/{number:08d}{'' if unique else '-' + token_hex(4)}.json"
        if store.create(key, json.dumps(asdict(written), default=datetime.isoformat, indent=1).encode()):
            _require_kept(store, key, written)
            return written
    raise StorageError(f"{store.root}: others promote models here all the time; try again")


def _require_kept(store: Store, key: str, written: Entry) -> None:
    if _read(store, key) != written:
        raise StorageError(f"{store.uri(key)}: the store did not keep what was written; try again")


def _read(store: Store, key: str) -> Entry:
    try:
        content = json.loads(store.get(key))
        return Entry(**{**content, "at": datetime.fromisoformat(content["at"])})
    except NotFoundError as error:
        raise StorageError(f"{store.uri(key)}: vanished while it was read; try again") from error
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{store.uri(key)}: not an entry of the models' record; restore it from a copy") from error
