"""Tells people how a night ended: one message to each address of `score --notify`, sent by the library `apprise`.

A message holds counts, run ids and drift alarms; no URI of a scan and nothing an error said, since both may tell of a
patient. An address often holds a secret, so it is neither logged nor recorded, and shown by its place and scheme only:
"the second address (mailto)". Whatever fails while a message is sent is a warning: the night is over.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import typer

from models.errors import InputError, RayscanError
from pipelines.errors import IncompleteError

if TYPE_CHECKING:
    from apprise import Apprise

    from pipelines.scoring.ending import RunEnd

log = logging.getLogger("rayscan")

VARIABLE: Final = "RAYSCAN_NOTIFY"
_WHAT_TO_DO: Final = {
    0: "Nothing to do.",
    1: "Failed: the store, the machine or a fault of rayscan. Try again later, then call somebody.",
    2: "Wrong input: somebody must mend it; the log says what.",
    3: "Incomplete: run the same command again.",
}


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One address that messages go to."""

    name: str
    """Its place among those given, and its scheme: nothing secret."""
    service: "Apprise"


@dataclass(kw_only=True)
class NightEnd:
    """What is known of a night when it is over."""

    scores: str
    """URI of the scores."""
    runs: list["RunEnd"] = field(default_factory=list)
    exit_code: int = 0

    @property
    def alarms(self) -> list[str]:
        """Drift alarms of all runs."""
        return [alarm for run in self.runs for alarm in run.alarms]


def channels(urls: Sequence[str]) -> list[Channel]:
    """The channels of these addresses. Raises `InputError` if apprise is missing, or knows no such address."""
    if not urls:
        return []
    _hush()
    try:
        from apprise import Apprise
    except ImportError as error:
        raise InputError(
            "to notify, rayscan needs the package apprise: pip install 'rayscan[notify]', or leave out --notify (and"
            f" {VARIABLE})"
        ) from error
    found = []
    for place, url in enumerate(urls, start=1):
        scheme, separator, _ = url.partition("://")
        name = f"address {place} ({scheme if separator and scheme.isalnum() else 'no scheme'})"
        service = Apprise()
        if not service.add(url):
            raise InputError(
                f"--notify: {name} is none that apprise can send to; write it as https://appriseit.com/services says,"
                " such as mailto://… or json://…"
            )
        found.append(Channel(name=name, service=service))
    return found


@contextmanager
def notified(to: Sequence[Channel], scores: str) -> Iterator[NightEnd]:
    """Send a message when the block ends, however it does; the block adds to what is yielded. Never raises itself."""
    night = NightEnd(scores=scores)
    try:
        yield night
    except BaseException as error:
        night.exit_code = exit_code(error)
        _send(to, night)
        raise
    _send(to, night)


def message(night: NightEnd) -> tuple[str, str]:
    """Title and text, for people."""
    title = "rayscan: night done" if night.exit_code == 0 else f"rayscan: night ended with exit code {night.exit_code}"
    if night.alarms:
        title += ", drift ALARM"
    lines = [line for run in night.runs for line in _of_run(run)] or ["No run was begun."]
    lines += [f"Drift {alarm}" for alarm in night.alarms]
    if night.alarms and night.exit_code == 0:
        lines.append("Look at these films before anybody trusts their scores.")
    else:
        lines.append(_WHAT_TO_DO.get(night.exit_code, "Stopped: run the same command again, it resumes."))
    lines.append(f"More: rayscan explain {night.scores}")
    return title, "\n".join(lines)


def _of_run(run: "RunEnd") -> Iterator[str]:
    from pipelines.scoring.ending import IN_WORDS  # DuckDB; an address is checked before anything heavy is loaded

    if run.counts is None:
        yield f"Run {run.run_id}: {IN_WORDS[run.state]}; {run.done:,} of {run.shards:,} shards are written."
        return
    counts = ", ".join(f"{count:,} {status}" for status, count in run.counts.items() if count)
    yield f"Run {run.run_id}: {run.planned:,} scans planned" + (f": {counts}." if counts else ", nothing new.")
    if run.quarantined:
        yield f"Folders that could not be read and were left out: {run.quarantined}."


def exit_code(error: BaseException) -> int:
    """Exit code of a verb that this error ends."""
    if isinstance(error, RayscanError | typer.Exit):
        return int(error.exit_code)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _send(to: Sequence[Channel], night: NightEnd) -> None:
    title, text = message(night)
    for channel in to:
        try:
            sent = channel.service.notify(body=text, title=title, notify_type=_urgency(night))
            fault = "" if sent else "refused, or not reached"
        except Exception as error:  # noqa: BLE001 (a plugin may raise anything, and its text may quote the address)
            fault = type(error).__name__
        if fault:
            log.warning("the notification to %s was not delivered (%s)", channel.name, fault)


def _urgency(night: NightEnd) -> str:
    """As apprise names it: it chooses colour and icon."""
    if night.exit_code == 0:
        return "warning" if night.alarms else "success"
    return "warning" if night.exit_code == IncompleteError.exit_code else "failure"


def _hush() -> None:
    """Keep apprise from logging addresses: it prints one whole that it cannot read."""
    logger = logging.getLogger("apprise")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
