"""What became of a run, read from its folder, the table and the lease: no cluster, no Ray, and nothing is written.

run.json                      it is finished
no run.json, lease held       it is at work
no run.json, end.json         it ended before its end, and the driver said how
neither                       its driver was killed, or its machine died; the markers of the attempts say where
no plan.json either           its driver died while it planned
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from models.messages import did_you_mean
from pipelines.errors import InputError, NotFoundError
from pipelines.scoring.attempts import MAX_ATTEMPTS, Attempt, located, newest_attempts
from pipelines.scoring.ending import IN_WORDS, RunEnd, read_end
from pipelines.scoring.plan import Plan
from pipelines.scoring.quarantine import corners
from pipelines.scoring.sink import written_sizes
from pipelines.storage import Store, open_store
from pipelines.table.delta import open_table
from pipelines.table.lease import LeaseState, lease_state
from pipelines.table.presence import no_run, unfinished_runs

Standing = Literal["finished", "at work", "unfinished", "never planned"]
SHOWN: Final = 3
"""Shards and folders that a line names; the others are counted."""
LOCATED: Final = 20
"""Attempts whose place is looked up, the oldest shards first."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What became of a run, and what to do."""

    run_id: str
    standing: Standing
    record: Mapping[str, Any]
    """run.json, else plan.json, else nothing."""
    end: RunEnd | None
    written: int
    """Shards whose part is written."""
    committed: int
    """Of these, shards that are in the table."""
    attempts: Sequence[Attempt]
    """At shards that are not written, with the place of the first LOCATED."""
    left_out: Sequence[Mapping[str, Any]]
    """Folders in quarantine: prefix, reason, told."""
    lease: LeaseState | None
    others: Sequence[str]
    """Other unfinished runs."""
    next: str
    """What to do."""

    def lines(self) -> list[str]:
        """For people: at most ten."""
        told = {
            "run": self._run(),
            "scans": self._scans(),
            "ended": self._ended(),
            "shards": self._shards(),
            "attempts": self._attempts(),
            "left out": _some([f"{c['prefix']} ({c['reason']}: {c['told']})" for c in self.left_out], "; "),
            "drift": _some([f"{f['quantity']} of {f['site'] or 'all sites'}: {f['level']}" for f in self._drift()]),
            "lease": self._lease(),
            "also": f"unfinished: {_some(self.others)}" if self.others else "",
            "next": self.next,
        }
        return [f"{name:<8}  {' '.join(text.split())}" for name, text in told.items() if text]

    def _run(self) -> str:
        model = f" of model {self.record['model_id']}" if self.record.get("model_id") else ""
        planned = f", planned {_minute(self.record['created'])}" if self.record.get("created") else ""
        return f"{self.run_id}{model}: {self.standing}{planned}"

    def _scans(self) -> str:
        if "planned" not in self.record:
            return ""
        text = f"{self.record['planned']:,} planned of {self.record.get('listed', 0):,} in {self.record.get('source')}"
        counts = self.record.get("counts") or {}
        return f"{text}: {', '.join(f'{n:,} {status}' for status, n in counts.items())}" if counts else text

    def _ended(self) -> str:
        if self.end is None:
            when = self.record.get("finished")
            if when or self.standing in {"at work", "never planned"}:
                return _minute(when) if when else ""
            if self.lease is not None and not self.lease.held:
                return "in good order, but the store took no note of how"
            return "without a word: killed, out of memory, or its machine lost"
        error = f" ({self.end.error})" if self.end.error else ""
        told = f": {self.end.told}" if self.end.told else ""
        free = _free(self.end.free_bytes)
        return (
            f"{_minute(self.end.at)} on {self.end.node}{free}, exit code {self.end.exit_code}:"
            f" {IN_WORDS[self.end.state]}{error}{told}"
        )

    def _shards(self) -> str:
        if not self.record.get("shards"):
            return ""
        text = f"{self.written:,} of {self.record['shards']:,} written"
        if self.written != self.committed:
            text += f", {self.committed:,} of them in the table"
        last = f"; the last was {self.end.last_shard}" if self.end and self.end.last_shard is not None else ""
        under_way = [str(shard) for shard in self.end.under_way] if self.end else []
        return f"{text}{last}" + (f"; under way: {_some(under_way)}" if under_way else "")

    def _attempts(self) -> str:
        return _some([self._attempt(attempt) for attempt in self.attempts], "; ")

    def _attempt(self, attempt: Attempt) -> str:
        """Of a driver that is at work the newest attempt is under way; of one that is not it died as well."""
        deaths = attempt.number + (self.standing != "at work")
        died = "" if not deaths else ", died once" if deaths == 1 else f", died {deaths} times"
        how = "" if not deaths else ", given up" if deaths > MAX_ATTEMPTS else ", its films are read in isolation"
        where = attempt.where
        at = f" begun {_minute(where.at)} on {where.node}{_free(where.free_bytes)}" if where else ""
        return f"shard {attempt.shard}{at}{died}{how}"

    def _drift(self) -> list[Mapping[str, Any]]:
        return [finding for finding in self.record.get("drift") or () if finding["level"] in {"warn", "alarm"}]

    def _lease(self) -> str:
        if self.lease is None or not self.lease.held:
            return "" if self.standing == "finished" else "free"
        who = f"process {self.lease.pid or '?'} on {self.lease.host or '?'}, renewed {self.lease.age:,.0f} s ago"
        return f"stale: of {who}; the next run takes it over" if self.lease.stale else f"held by {who}"


def explain(uri: str, run: str | None = None) -> Explanation:
    """What became of a run of the scores at a URI, by default of the newest.

    Raises `InputError` if nothing was ever scored there, if there is no such run, or if a file of it is damaged.
    """
    store = open_store(uri)
    keys = {info.key for chunk in store.list("runs") for info in chunk}
    runs = sorted({key.split("/")[1] for key in keys if key.count("/") >= 2})
    if not runs:
        raise no_run(store)
    if run is not None and run not in runs:
        hint = did_you_mean(run, runs) or f"the newest is {runs[-1]}"
        raise InputError(f"{store.root}: there is no run {run!r} here; {hint}")
    run = run or runs[-1]
    plan, record = (_read(store, f"runs/{run}/{name}.json", keys) for name in ("plan", "run"))
    known = record or plan or {}
    unfinished = record is None and plan is not None
    end = read_end(store, run)
    lease = lease_state(store, known["model_id"]) if known.get("model_id") else None
    written, committed = _shards_of(store, plan or {}) if unfinished else _all_shards(known)
    begun = [each for each in newest_attempts(store, run) if each.shard not in written] if unfinished else []
    standing = _standing(plan, record, end, lease)
    left_out = _left_out(store, run, record)
    return Explanation(
        run_id=run,
        standing=standing,
        record=known,
        end=end,
        written=len(written),
        committed=committed,
        attempts=[*located(store, run, begun[:LOCATED]), *begun[LOCATED:]],
        left_out=left_out,
        lease=lease,
        others=[other for other in unfinished_runs(keys) if other != run],
        next=_next(store.root, standing, known, end, bool(left_out)),
    )


def _standing(plan: object, record: object, end: RunEnd | None, lease: LeaseState | None) -> Standing:
    if record is not None:
        return "finished"
    if plan is None:
        return "never planned"
    return "at work" if end is None and lease is not None and lease.held and not lease.stale else "unfinished"


def _shards_of(store: Store, plan: Mapping[str, Any]) -> tuple[set[int], int]:
    """The shards of a plan whose part is written, and how many of them are in the table."""
    table = open_table(store)
    in_table = set(table.run_parts(plan["run_id"], plan["model_id"])) if table else set()
    return in_table | set(written_sizes(store, Plan(**plan))), len(in_table)


def _all_shards(record: Mapping[str, Any]) -> tuple[set[int], int]:
    shards = int(record.get("shards", 0))
    return set(range(shards)), shards


def _left_out(store: Store, run: str, record: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    found = record.get("quarantined") if record else None
    if found is not None:
        return [dict(corner) for corner in found]
    return [{"prefix": c.prefix, "reason": c.reason.value, "told": c.told} for c in corners(store, run)]


def _read(store: Store, key: str, keys: set[str]) -> dict[str, Any] | None:
    if key not in keys:
        return None
    try:
        content: dict[str, Any] = json.loads(store.get(key))
    except NotFoundError:  # pruned, or overtaken, since it was listed
        return None
    except ValueError as error:
        raise InputError(f"{store.uri(key)}: is damaged; restore it from a copy") from error
    return content


def _next(root: str, standing: Standing, known: Mapping[str, Any], end: RunEnd | None, left_out: bool) -> str:
    """What to do, with the command to type."""
    if standing == "at work":
        return "nothing, it is at work; its log and Ray's dashboard (rayscan dashboard) show how far"
    if standing == "finished":
        return _after(root, known, left_out)
    again = "run the same command again"
    if standing == "never planned":
        return f"{again}: its driver died while it planned, and nothing of this run was scored"
    arguments = [known.get("source", "ARCHIVE"), "--model", known.get("bundle", "BUNDLE"), "--out", root]
    again += f", it resumes this run: rayscan score {shlex.join(arguments)}"
    first = {
        "store_failed": f"see whether the store answers (rayscan doctor {shlex.quote(root)}), then ",
        "workers_lost": "give the workers more memory or fewer actors (--memory, --max-actors), then ",
        "refused": "mend what the line above names, then ",
        "fault": f"report it, with the traceback in rayscan's logs on {end.node if end else 'its machine'}, then ",
    }
    return f"{first.get(end.state, '') if end else ''}{again}"


def _after(root: str, record: Mapping[str, Any], left_out: bool) -> str:
    """What to do after a run that is finished, the most urgent first."""
    scores = shlex.quote(root)
    if record.get("drift_level") == "alarm":
        return f"look at the films before anybody trusts their scores: rayscan report {scores} --out report.html"
    if left_out:
        return "let the scoring role read the folders left out; the next night tries them again"
    if (record.get("counts") or {}).get("failed"):
        question = "SELECT uri, reason FROM latest WHERE status = 'failed' LIMIT 100"
        return f'nothing, the next night tries what failed again; see it: rayscan query {scores} "{question}"'
    return "nothing"


def _some(names: Sequence[str], between: str = ", ") -> str:
    """The first of these names, and how many more there are."""
    more = len(names) - SHOWN
    return between.join(names[:SHOWN]) + (f"{between.rstrip()} and {more:,} more" if more > 0 else "")


def _minute(moment: str) -> str:
    """An ISO 8601 time in UTC, to the minute."""
    return f"{moment[:16].replace('T', ' ')} UTC"


def _free(size: int | None) -> str:
    return "" if size is None else f" ({size / 1e9:.1f} GB of memory free)"
