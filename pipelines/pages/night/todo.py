"""The tasks after a run, the most urgent first, and advice for every reason a scan was not scored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pipelines.contracts import STATUS_OF_REASON, Reason, Status
from pipelines.pages.night.drift import describe, quantity_names
from pipelines.table.drift import DriftFinding, others_than_the_models

SITES_NAMED: Final = 5
"""Sites whose drift is a task of its own; the rest are in the table."""
MANY_UNREADABLE: Final = 0.05
"""Share of a run from which on unreadable files point to a fault at the source."""

ADVICE: Final[dict[Reason, str]] = {
    Reason.EMPTY_FILE: "The file is empty. Have the source send it again.",
    Reason.UNKNOWN_FORMAT: "Neither JPEG, PNG nor DICOM. Nothing to do unless it should be a scan.",
    Reason.TRUNCATED: "The file ends too early, often a broken upload. Send it again; the next run scores it.",
    Reason.CORRUPT: "The bytes contradict their own format. Export the scan again at its source.",
    Reason.NO_PIXELS: "A header without an image. Have the source send it again.",
    Reason.TOO_LARGE: "More pixels than a chest film has. Check the file; export it again at its normal size.",
    Reason.UNSUPPORTED: "A compression or pixel layout rayscan cannot decode. Export it as plain DICOM, JPEG or PNG.",
    Reason.CRASHED: "It crashed the decoder; the next runs try again. If that does not help, report the file.",
    Reason.TIMED_OUT: "Decoding it took too long; the next runs try again. If that does not help, export it again.",
    Reason.OUT_OF_MEMORY: "Decoding it took more memory than a worker has; the next runs try again. Check the file.",
    Reason.NOT_IMAGE: "A report, a presentation state or another DICOM object without a film. Nothing to do.",
    Reason.NOT_XRAY: "Its header names another modality than X-ray. Nothing to do in a mixed archive.",
    Reason.FOR_PROCESSING: "Raw detector data, which no reader is shown. The film for presentation lies beside it.",
    Reason.NOT_CHEST: "Another body part, by its header or its image. Nothing to do in a mixed archive.",
    Reason.NOT_FRONTAL: "A lateral or oblique view; the model knows frontal films only. Nothing to do.",
    Reason.OUTSIDE_INTENDED_USE: "Of patients or views this model was not made for, by its header. Have it read.",
    Reason.BLANK: "Almost a single grey level. Have someone check whether the exposure failed.",
    Reason.INVERTED: "Inverted: bone is dark. Export it with the correct photometric interpretation, then run again.",
    Reason.ROTATED: "The image is rotated. Rotate it at its source; the next run scores it.",
    Reason.CROPPED: "Only part of the chest is seen. Export the whole film; if this is it, have a radiologist read it.",
    Reason.UNFAMILIAR: "Too unlike the training films to trust a score. Have a radiologist read it.",
    Reason.VANISHED: "It was listed, but gone when it was read. If it comes back, the next run scores it.",
    Reason.CHANGED: "It changed between listing and reading. The next run scores the new version.",
    Reason.ACCESS_DENIED: "The store denied access. Give the scoring role read access, then run again.",
    Reason.STORAGE_ERROR: "The store failed even after retries. Run again; if it persists, ask who operates the store.",
    Reason.WORKER_LOST: "Its worker died repeatedly, not because of one scan. Check the memory; run again.",
    Reason.LEFT_ARCHIVE: "The file is no longer in its archive. Nothing to do; if it comes back, it is scored again.",
}
"""What to do about each reason."""

Urgency = Literal["alarm", "warn", "note"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing to do."""

    urgency: Urgency
    what: str
    how: str


@dataclass(frozen=True, kw_only=True)
class NightFacts:
    """The facts about one run that its tasks depend on."""

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
    """What to do about a reason, including one of a later version."""
    if reason in STATUS_OF_REASON:
        return ADVICE[Reason(reason)]
    return "This version of rayscan does not know this reason; see the log of the run."


def tasks(facts: NightFacts) -> list[Task]:
    """What to do next, the most urgent first; never empty."""
    ordered = [
        *_others(facts),
        *_drifts(facts, "alarm"),
        *_unfinished(facts),
        *_left_out(facts),
        *_failed(facts),
        *_machines(facts),
        *_unreadable(facts),
    ]
    ordered += _drifts(facts, "warn")
    ordered.sort(key=lambda task: ("alarm", "warn", "note").index(task.urgency))
    if facts.positives:
        how = "The highest probabilities are in the worklist below."
        ordered.append(Task(urgency="note", what=f"{_films(facts.positives)} called positive.", how=how))
    return ordered or [Task(urgency="note", what="Nothing.", how="No scan of this run needs attention.")]


def _others(facts: NightFacts) -> list[Task]:
    """The first thing to know of a night most of whose films are of other patients than the model's."""
    how = "Take no probability of these films for what it says, also of the few that were scored."
    return [
        Task(urgency="alarm", what=f"At {finding.site or 'all sites'}: {finding.note}.", how=how)
        for finding in others_than_the_models(facts.findings)[:SITES_NAMED]
    ]


def _drifts(facts: NightFacts, level: Urgency) -> list[Task]:
    """One task per site, in the order of the findings: all sites together first."""
    of_site: dict[str | None, list[DriftFinding]] = {}
    told = others_than_the_models(facts.findings)
    for finding in facts.findings:
        if finding.level == level and finding not in told:
            of_site.setdefault(finding.site, []).append(finding)
    how = {
        "alarm": "Do not trust the probabilities of these films before someone has looked at some of them and found out"
        " what changed: a scanner, an export, the patients.",
        "warn": "Look at some of these films, and watch whether the drift grows over the next nights.",
    }[level]
    named = [
        Task(
            urgency=level,
            what=f"Drift {'over all sites' if site is None else f'at {site}'}: {quantity_names(findings)}.",
            how=f"{how} {' '.join(map(describe, findings))}",
        )
        for site, findings in list(of_site.items())[:SITES_NAMED]
    ]
    more = len(of_site) - SITES_NAMED
    if more > 0:
        named.append(Task(urgency=level, what=f"Drift at {more} more sites.", how="See the table of drift."))
    return named


def _unfinished(facts: NightFacts) -> list[Task]:
    if facts.finished:
        return []
    left = facts.planned - sum(facts.statuses.values())
    what = f"This run is not finished: {left:,} of {facts.planned:,} scans are not written yet."
    how = "If nothing is working on it, run the same command again: it continues where the run stopped."
    return [Task(urgency="warn", what=what, how=how)]


def _failed(facts: NightFacts) -> list[Task]:
    listed = []
    failed = facts.statuses[Status.FAILED]
    if failed:
        what = f"{_scans(failed)} failed{_mostly(facts, Status.FAILED)}."
        listed.append(Task(urgency="warn", what=what, how=_how(facts, Status.FAILED, "The next run tries them again.")))
    given_up = facts.record.get("given_up")
    if given_up:
        what = f"Given up: {_scans(given_up)} that failed in too many runs."
        how = "rayscan query lists them (view rejects, status = 'failed'); once mended: score --again REASON."
        listed.append(Task(urgency="warn", what=what, how=how))
    return listed


def _left_out(facts: NightFacts) -> list[Task]:
    return [
        Task(
            urgency="warn",
            what=f"{corner['prefix']} was left out: {_scans(corner['scans'])} could not be read.",
            how=f"The store said: {corner['told']}. The next run tries them again.",
        )
        for corner in facts.record.get("quarantined", ())
    ]


def _machines(facts: NightFacts) -> list[Task]:
    lost = facts.record.get("lost_workers")
    if not lost:
        return []
    what = f"Shards were restarted {_times(lost)}, because a worker, node or driver was lost."
    how = "Every scan still has its row. If it happens every night, check the memory of the workers."
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
