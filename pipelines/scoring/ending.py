"""How a run ended, written by its driver before it exits: runs/<run_id>/end.json.

    finished       every scan is accounted for; run.json has the counts
    stopped        Ctrl-C, or SIGTERM from a scheduler
    store_failed   the store of the archive or of the scores failed, or refused
    workers_lost   Ray could not go on; `told` has its own error in a line
    taken_over     this driver did not renew its lease; the other one writes the end, this one writes nothing
    incomplete     shards are missing from the table
    refused        the input was wrong, which showed late
    fault          an exception that nobody foresaw

A driver that is killed (`kill -9`, out of memory) or whose machine dies writes nothing. Then the absence of end.json,
the lease and the markers of the attempts tell: `explain.py` puts them together. A resumed run removes the end that the
attempt before left.

Of an error that is not rayscan's own only the class is kept: what libraries say may quote a header.
"""

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Final, Literal

from models.messages import root_cause
from pipelines.errors import ClusterError, IncompleteError, InputError, NotFoundError, RayscanError, StorageError
from pipelines.scoring.attempts import Attempt, newest_attempts
from pipelines.scoring.plan import Plan
from pipelines.scoring.whereabouts import here
from pipelines.storage import Store
from pipelines.table.lease import Lease
from pipelines.table.record import RunRecord

log = logging.getLogger("rayscan")

State = Literal["finished", "stopped", "store_failed", "workers_lost", "taken_over", "incomplete", "refused", "fault"]
IN_WORDS: Final[dict[State, str]] = {
    "finished": "finished",
    "stopped": "stopped by a person or a scheduler",
    "store_failed": "a store failed, or refused",
    "workers_lost": "Ray lost its workers or nodes",
    "taken_over": "another run took over, because this one did not renew its lease",
    "incomplete": "shards are missing from the table",
    "refused": "what it was given is wrong",
    "fault": "a fault of rayscan",
}
INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as a shell gives it."""
LONGEST: Final = 500
"""Characters of `told`."""
MOST_SHARDS: Final = 1_000
"""Of `under_way`; a run has no more actors than that at work."""

_USER: Final = re.compile(r"//[^/\s@]+@")
_QUERY: Final = re.compile(r"(?<=\S)\?\S*=\S*")


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """The contents of end.json."""

    run_id: str
    model_id: str
    state: State
    exit_code: int
    """Of the command, if this was its last run."""
    error: str | None
    """Class of the exception; None of a finished run."""
    told: str | None
    """What rayscan said about it, in one line; None for an exception that is not its own."""
    at: str
    """ISO 8601, UTC, by the driver's clock; like the three below of the driver."""
    node: str
    pid: int
    free_bytes: int | None
    """Memory that could still be had there."""
    peak_bytes: int | None
    """Most memory that the driver itself held."""
    planned: int
    """Scans."""
    shards: int
    done: int
    """Shards whose part is written."""
    last_shard: int | None
    """The one that ended last in this attempt."""
    under_way: Sequence[int]
    """Shards that had been begun and had not ended."""
    deaths: Mapping[str, int]
    """Shard -> how many attempts at it died before the one under way."""
    counts: Mapping[str, int] | None = None
    """Scans by status, of a finished run."""
    quarantined: int = 0
    """Folders that were left out."""
    alarms: Sequence[str] = ()
    """One line for each drift alarm of a finished run."""


@dataclass(kw_only=True)
class Headway:
    """How far a run is, as its driver knows it."""

    done: set[int] = field(default_factory=set)
    last: int | None = None
    taken_back: list[int] = field(default_factory=list)
    """Shards that were under way when the driver was stopped in good order; their markers are gone."""
    record: RunRecord | None = None

    def end(self, shard: int) -> None:
        """A shard is written."""
        self.done.add(shard)
        self.last = shard


@contextmanager
def end_written(
    store: Store, plan: Plan, headway: Headway, lease: Lease, tell: Callable[[RunEnd], None]
) -> Iterator[None]:
    """Write end.json when the block ends, however it does, and `tell` it; whatever it raises goes on its way.

    Never raises itself. A driver that has lost its lease writes nothing: the run is another's.
    """
    try:
        yield
    except BaseException as error:
        _end(store, plan, headway, lease, tell, error)
        raise
    _end(store, plan, headway, lease, tell, None)


def _end(
    store: Store,
    plan: Plan,
    headway: Headway,
    lease: Lease,
    tell: Callable[[RunEnd], None],
    error: BaseException | None,
) -> None:
    quick, lost = store.impatient(), lease.is_lost
    end = _run_end(quick, plan, headway, error, lost=lost)
    if not lost:
        try:
            quick.put(_key(plan.run_id), json.dumps(asdict(end), indent=1).encode())
        except RayscanError as failure:
            log.warning("run %s: how it ended was not written (%s)", plan.run_id, failure)
    tell(end)


def forget_end(store: Store, run_id: str) -> None:
    """Remove the end that an earlier attempt at a run left: it is under way again."""
    store.delete(_key(run_id))


def read_end(store: Store, run_id: str) -> RunEnd | None:
    """How a run ended; None if nothing was written, or not by this version of rayscan."""
    try:
        return RunEnd(**json.loads(store.get(_key(run_id))))
    except (NotFoundError, ValueError, TypeError):
        return None


def _run_end(store: Store, plan: Plan, headway: Headway, error: BaseException | None, *, lost: bool) -> RunEnd:
    record, where = headway.record, here()
    attempts = [] if record else _attempts(store, plan.run_id)
    begun = {attempt.shard for attempt in attempts} - headway.done | set(headway.taken_back)
    return RunEnd(
        run_id=plan.run_id,
        model_id=plan.model_id,
        state="taken_over" if lost and error else _state(error),
        exit_code=_exit_code(error, record),
        error=None if error is None else type(_reason(error)).__name__,
        told=told_safely(error),
        **asdict(where),
        peak_bytes=_peak_bytes(),
        planned=plan.planned,
        shards=plan.shards,
        done=plan.shards if record else len(headway.done),
        last_shard=headway.last,
        under_way=sorted(begun)[:MOST_SHARDS],
        deaths={str(a.shard): a.number for a in attempts if a.number and a.shard in begun},
        counts=dict(record.counts) if record else None,
        quarantined=len(record.quarantined) if record else 0,
        alarms=record.alarms() if record else (),
    )


def _attempts(store: Store, run_id: str) -> list[Attempt]:
    try:
        return newest_attempts(store, run_id)
    except RayscanError as error:  # the store is down, which may be why the run ends
        log.warning("run %s: which shards were under way is not known (%s)", run_id, error)
        return []


def _state(error: BaseException | None) -> State:
    if error is None:
        return "finished"
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "stopped"
    if isinstance(error, ClusterError):
        return "workers_lost"
    # Before InputError: of a store that loses a bucket or a right in the middle of a run. See `runs.py`.
    if isinstance(error, StorageError) or (isinstance(error, IncompleteError) and _reason(error) is not error):
        return "store_failed"
    if isinstance(error, IncompleteError):
        return "incomplete"
    return "refused" if isinstance(error, InputError) else "fault"


def _exit_code(error: BaseException | None, record: RunRecord | None) -> int:
    if error is None:
        return IncompleteError.exit_code if record and record.left_out() else 0
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    return error.exit_code if isinstance(error, RayscanError) else 1


def _reason(error: BaseException) -> BaseException:
    """What is behind an error: of "run it again" the failure of the store, of Ray's wrapping what a worker raised."""
    if isinstance(error, IncompleteError) and isinstance(error.__cause__, RayscanError):
        return error.__cause__
    return root_cause(error)


def told_safely(error: BaseException | None) -> str | None:
    """What one of rayscan's own errors says, in one line and without what a URL may hold of a secret; else None."""
    if not isinstance(error, RayscanError):
        return None
    line = _QUERY.sub("?…", _USER.sub("//…@", " ".join(str(error).split())))
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def _peak_bytes() -> int | None:
    if not sys.platform.startswith("linux"):  # elsewhere it is counted in another unit, or not at all
        return None
    import resource  # noqa: PLC0415 (Unix only)

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _key(run_id: str) -> str:
    return f"runs/{run_id}/end.json"
