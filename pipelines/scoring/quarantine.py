"""A corner of the archive that cannot be read does not stop the night.

    runs/<run_id>/quarantine/<hash>.json     one folder of the archive, why it is left out, and what the store said

A worker to which FAILURES_IN_A_ROW scans in a row were refused asks whether the store fails or only a folder of it: it
tries a few other films of the plan, from the folder outwards. The largest folder in which every film that it tries is
refused, while one outside is readable, is put in quarantine: its scans become `failed` at once, without a request, and
the next night tries them again. If no film at all can be read, the store is down, and the run stops to be resumed.

Workers share their finds through the objects above, which each reads before a shard; so a corner costs every worker at
most FAILURES_IN_A_ROW refusals and one search. A resumed run keeps them: what it leaves out, the plan after it has.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Final

from pipelines.contracts import Reason
from pipelines.errors import NoBucketError, NotFoundError, RayscanError
from pipelines.ingest.catalog_info import MANIFEST
from pipelines.scoring.plan import Plan, read_shard
from pipelines.storage import Store, open_store, split_uri

MOST: Final = 100
"""Folders in quarantine; with more of them something is wrong with the archive as a whole."""
SHARDS_TRIED: Final = 16
FILMS_TRIED: Final = 4
"""Of each folder on the way outwards."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A scan that the store did not deliver."""

    uri: str
    reason: Reason
    told: str
    """What the store said."""


@dataclass(frozen=True, kw_only=True)
class Corner:
    """A folder whose scans are left out of a run."""

    prefix: str
    """URI that ends in "/"."""
    reason: Reason
    told: str

    def holds(self, uri: str) -> bool:
        """Whether a scan lies there."""
        return uri.startswith(self.prefix)


class StoreDownError(Exception):
    """No film of the plan can be read."""


class Quarantine:
    """The corners of one run, as one worker knows them."""

    def __init__(self, store: Store, plan: Plan) -> None:
        self._store, self._plan = store, plan
        self._corners: list[Corner] = []
        self._shard = 0

    def enter(self, shard: int) -> None:
        """Learn what other workers have found, before a shard is begun."""
        self._shard = shard
        self._corners = corners(self._store, self._plan.run_id)

    def corner_of(self, uri: str) -> Corner | None:
        """The corner that a scan lies in."""
        return next((corner for corner in self._corners if corner.holds(uri)), None)

    def judge(self, refusals: Sequence[Refusal]) -> None:
        """Put a folder in quarantine if these refusals in a row are its fault, and return.

        Returns as well if the store works again, or refuses only single films. Raises `StoreDownError` if the store
        itself fails, or if there are MOST corners already.
        """
        self.enter(self._shard)
        if self.corner_of(refusals[-1].uri):  # another worker was here first
            return
        prefix = find_corner([refusal.uri for refusal in refusals], self._sample(), self._beside, is_readable)
        if prefix is None:
            return
        if len(self._corners) >= MOST:
            raise StoreDownError
        corner = Corner(prefix=prefix, reason=refusals[-1].reason, told=refusals[-1].told)
        name = blake2b(prefix.encode(), digest_size=8).hexdigest()
        self._store.put(f"{_folder(self._plan.run_id)}/{name}.json", json.dumps(asdict(corner)).encode())
        self._corners.append(corner)

    def _sample(self) -> list[str]:
        """Some films of the plan, which is sorted by their URIs: of this shard, its neighbours, and all over."""
        step = max(1, self._plan.shards // SHARDS_TRIED)
        near = range(self._shard - 1, self._shard + 2)
        shards = sorted({*range(0, self._plan.shards, step), *near} & set(range(self._plan.shards)))
        sample = []
        for shard in shards:
            uris = read_shard(self._store, self._plan.run_id, shard)["uri"]
            sample += [uris[at].as_py() for at in sorted({0, len(uris) // 3, 2 * len(uris) // 3, len(uris) - 1})]
        return sample

    def _beside(self, prefix: str) -> list[str]:
        """Films of the archive before and after a folder, for a plan that has none outside of it."""
        archive = open_store(self._plan.source).impatient()
        if not prefix.startswith(f"{archive.root}/"):
            return []
        folder = prefix.removeprefix(f"{archive.root}/")
        try:
            if archive.exists(MANIFEST):  # a catalogue, which lies elsewhere than its films
                return []
            keys = [*archive.first_keys(), *archive.first_keys(after=f"{folder[:-1]}0")]  # "0" comes right after "/"
        except RayscanError:
            return []
        return [uri for key in keys if not (uri := archive.uri(key)).startswith(prefix)]


def corners(store: Store, run_id: str) -> list[Corner]:
    """The corners of a run, by their prefix."""
    keys = [info.key for chunk in store.list(_folder(run_id)) for info in chunk]
    found = [json.loads(store.get(key)) for key in keys]
    return sorted((Corner(**{**c, "reason": Reason(c["reason"])}) for c in found), key=lambda c: c.prefix)


def find_corner(
    refused: Sequence[str],
    sample: Sequence[str],
    beside: Callable[[str], Sequence[str]],
    is_readable: Callable[[str], bool],
) -> str | None:
    """The largest folder around the `refused` films of which no film can be read, if one outside can.

    None if the fault is no folder's: the store works again, or other films of the same folder can be read. Raises
    `StoreDownError` if no film can be read at all. `beside` gives films outside of a folder that holds all the sample.
    """
    bucket = "/".join(refused[-1].split("/")[:3])  # a catalogue may name films of several
    innermost = _common_folder([uri for uri in refused if uri.startswith(f"{bucket}/")])
    tried: dict[str, list[str]] = {}
    rest = [uri for uri in sample if uri not in set(refused)]
    for folder in _outwards(innermost):
        tried[folder] = _spread([uri for uri in rest if uri.startswith(folder)], FILMS_TRIED)
        rest = [uri for uri in rest if not uri.startswith(folder)]
    answers = _asked([refused[-1], *(uri for uris in tried.values() for uri in uris)], is_readable)
    if answers[refused[-1]]:
        return None
    corner = None
    for folder, uris in tried.items():
        if any(answers[uri] for uri in uris):
            return corner
        if uris or corner is None:
            corner = folder
    outside = _spread(list(beside(corner or innermost)), FILMS_TRIED)
    if any(_asked(outside, is_readable).values()):
        return corner
    raise StoreDownError


def is_readable(uri: str) -> bool:
    """Whether the store answers for this film: with its bytes, or that it is gone."""
    store, key = split_uri(uri, impatient=True)
    try:
        store.get(key)
    except NoBucketError:
        return False
    except NotFoundError:
        return True
    except RayscanError:
        return False
    return True


def _asked(uris: Sequence[str], is_readable: Callable[[str], bool]) -> dict[str, bool]:
    """All at once: a store that hangs takes its time for each."""
    with ThreadPoolExecutor(max(1, len(uris)), thread_name_prefix="corner") as threads:
        return dict(zip(uris, threads.map(is_readable, uris), strict=True))


def _common_folder(uris: Sequence[str]) -> str:
    first, last = min(uris), max(uris)
    length = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:length].rpartition("/")[0] + "/"


def _outwards(folder: str) -> list[str]:
    """The folder, the one it lies in, and so on up to the bucket; at last "", which is everywhere."""
    scheme, _, path = folder.rstrip("/").partition("://")
    names = path.split("/")
    return [f"{scheme}://{'/'.join(names[:count])}/" for count in range(len(names), 0, -1)] + [""]


def _spread(uris: Sequence[str], count: int) -> list[str]:
    """At most `count` of them, first and last included."""
    if len(uris) <= count:
        return list(dict.fromkeys(uris))
    return list(dict.fromkeys(uris[round(at * (len(uris) - 1) / (count - 1))] for at in range(count)))


def _folder(run_id: str) -> str:
    return f"runs/{run_id}/quarantine"
