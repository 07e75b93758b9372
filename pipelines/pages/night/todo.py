"""What a person does after a run: a list of tasks, the worst first, and advice for every reason a scan can have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pipelines.contracts import STATUS_OF_REASON, Reason, Status
from pipelines.pages.night.drift import describe, names
from pipelines.table.drift import DriftFinding

SITES_NAMED: Final = 5
"""Sites whose drift is a task of its own; the table has the rest."""
MANY_UNREADABLE: Final = 0.05
"""Share of a run from which unreadable files are a fault of whoever sends them."""

ADVICE: Final[dict[Reason, str]] = {
    Reason.EMPTY_FILE: "The file has no bytes. Have the source send it again.",
    Reason.UNKNOWN_FORMAT: "Neither JPEG, PNG nor DICOM. Nothing to do unless it should have been a scan.",
    Reason.TRUNCATED: "The file ends too early, often a broken upload. Send it again; the next run scores it.",
    Reason.CORRUPT: "The bytes contradict their own format. Export the scan again at its source.",
    Reason.NO_PIXELS: "A DICOM object without a picture, such as a report. Nothing to do.",
    Reason.TOO_LARGE: "More pixels than a chest film has. Check the file; export it again at its ordinary size.",
    Reason.UNSUPPORTED: "A compression or pixel layout rayscan cannot decode. Export it as plain DICOM, JPEG or PNG.",
    Reason.CRASHED: "Decoding it ends the decoder. Export it again at its source, and report the file.",
    Reason.TIMED_OUT: "Decoding it does not end. Export the scan again at its source.",
    Reason.OUT_OF_MEMORY: "Decoding it takes more memory than a worker has. Check the file; export it again.",
    Reason.NOT_XRAY: "Its header names another modality than X-ray. Nothing to do in a mixed archive.",
    Reason.NOT_CHEST: "Another part of the body, by its header or its picture. Nothing to do in a mixed archive.",
    Reason.NOT_FRONTAL: "A lateral or oblique view; the model knows frontal films only. Nothing to do.",
    Reason.BLANK: "Almost one grey level: no film is seen. Have a person look whether the exposure failed.",
    Reason.INVERTED: "A negative: bone is dark. Export it with its own photometric interpretation, then run again.",
    Reason.ROTATED: "It lies on its side or on its head. Turn it at its source; the next run scores it.",
    Reason.CROPPED: "Only part of a chest is seen. Export the whole film; if there is no more, have a person read it.",
    Reason.OUT_OF_DISTRIBUTION: "Farther from the training films than known ones lie. Have a person read it.",
    Reason.VANISHED: "It was listed, and gone when it was to be read. If it comes back, the next run scores it.",
    Reason.CHANGED: "It changed between listing and reading. The next run scores the new version.",
    Reason.ACCESS_DENIED: "The store refused to hand it out. Give the scoring role read access, then run again.",
    Reason.STORAGE_ERROR: "The store failed even after retries. Run again; if it stays, ask who runs the store.",
    Reason.WORKER_LOST: "Its worker died again and again, with no scan to blame. Look at its memory; run again.",
}
"""What a person does about each reason."""

Urgency = Literal["alarm", "warn", "note"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing to do."""

    urgency: Urgency
    what: str
    how: str


@dataclass(frozen=True, kw_only=True)
class NightFacts:
    """Of one run, what its tasks follow from."""

    planned: int
    statuses: Mapping[str, int]
    """Rows by status, every status."""
    positives: int
    reasons: Mapping[str, Mapping[str, int]]
    """Status -> reason -> rows."""
    findings: Sequence[DriftFinding]
    record: Mapping[str, Any]
    """run.json, or the plan of an unfinished run."""
    finished: bool


def advice(reason: str | None) -> str:
    """What to do about a reason, also one of a later version."""
    if reason in STATUS_OF_REASON:
        return ADVICE[Reason(reason)]
    return "This version of rayscan does not know this reason; look at the log of the run."


def tasks(facts: NightFacts) -> list[Task]:
    """What to do next, the most urgent first; never empty."""
    found = [*_drifts(facts, "alarm"), *_unfinished(facts), *_failed(facts), *_machines(facts), *_unreadable(facts)]
    found += _drifts(facts, "warn")
    found.sort(key=lambda task: ("alarm", "warn", "note").index(task.urgency))
    if facts.positives:
        how = "The highest probabilities stand in the worklist below."
        found.append(Task(urgency="note", what=f"{_films(facts.positives)} called positive.", how=how))
    return found or [Task(urgency="note", what="Nothing.", how="No scan of this run asks for a person.")]


def _drifts(facts: NightFacts, level: Urgency) -> list[Task]:
    """A task a site, the sites in the order of the findings: all of them first."""
    of_site: dict[str | None, list[DriftFinding]] = {}
    for finding in facts.findings:
        if finding.level == level:
            of_site.setdefault(finding.site, []).append(finding)
    how = {
        "alarm": "Do not trust the probabilities of these films before a person has looked at some and found out what"
        " changed: a machine, an export, the patients.",
        "warn": "Look at some of these films, and whether it grows over the next nights.",
    }[level]
    named = [
        Task(
            urgency=level,
            what=f"Drift {'over all sites' if site is None else f'at {site}'}: {names(findings)}.",
            how=f"{how} {' '.join(map(describe, findings))}",
        )
        for site, findings in list(of_site.items())[:SITES_NAMED]
    ]
    more = len(of_site) - SITES_NAMED
    if more > 0:
        named.append(Task(urgency=level, what=f"Drift at {more} more sites.", how="The table of drift has them."))
    return named


def _unfinished(facts: NightFacts) -> list[Task]:
    if facts.finished:
        return []
    left = facts.planned - sum(facts.statuses.values())
    what = f"This run is not finished: {left:,} of {facts.planned:,} scans are not written yet."
    how = "If nothing is working on it, run the same command again: it goes on where the run stopped."
    return [Task(urgency="warn", what=what, how=how)]


def _failed(facts: NightFacts) -> list[Task]:
    found = []
    failed = facts.statuses[Status.FAILED]
    if failed:
        what = f"{_scans(failed)} failed{_mostly(facts, Status.FAILED)}."
        found.append(Task(urgency="warn", what=what, how=_how(facts, Status.FAILED, "The next run tries them again.")))
    given_up = facts.record.get("given_up")
    if given_up:
        what = f"Given up: {_scans(given_up)} that failed on too many nights."
        found.append(
            Task(urgency="warn", what=what, how="rayscan query lists them: the view rejects, status = 'failed'.")
        )
    return found


def _machines(facts: NightFacts) -> list[Task]:
    lost = facts.record.get("lost_workers")
    if not lost:
        return []
    what = f"Shards were begun again {_times(lost)}, since their worker, node or driver was gone."
    how = "Every scan has its row all the same. If it happens every night, look at the memory of the workers."
    return [Task(urgency="note", what=what, how=how)]


def _unreadable(facts: NightFacts) -> list[Task]:
    unreadable = facts.statuses[Status.UNREADABLE]
    if not unreadable:
        return []
    many = unreadable >= MANY_UNREADABLE * sum(facts.statuses.values())
    what = f"{_scans(unreadable)} cannot be read{_mostly(facts, Status.UNREADABLE)}."
    return [Task(urgency="warn" if many else "note", what=what, how=_how(facts, Status.UNREADABLE, ""))]


def _mostly(facts: NightFacts, status: Status) -> str:
    reasons = facts.reasons.get(status, {})
    if not reasons:
        return ""
    most = max(reasons, key=lambda reason: reasons[reason])
    return f" ({'' if len(reasons) == 1 else 'most: '}{most})"


def _how(facts: NightFacts, status: Status, otherwise: str) -> str:
    reasons = facts.reasons.get(status, {})
    most = advice(max(reasons, key=lambda reason: reasons[reason])) if reasons else ""
    return f"{most} {otherwise}".strip()


def _films(n: int) -> str:
    return f"{n:,} film is" if n == 1 else f"{n:,} films are"


def _scans(n: int) -> str:
    return f"{n:,} scan{'' if n == 1 else 's'}"


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n:,} times"
