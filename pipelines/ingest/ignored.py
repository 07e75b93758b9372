"""What a listing leaves out, and why: each kind counted, with the first example, so that nothing vanishes unseen."""

import threading
from dataclasses import dataclass, field
from typing import Any, Final

EXAMPLE_LENGTH: Final = 200

KINDS: Final = {
    "hidden": "hidden files",
    "other_file": "files whose names say that they are no scans",
    "folder_marker": "empty objects that only mark a folder",
    "excluded": "files that --include and --exclude leave out",
    "older": "files older than --since",
    "not_utf8": "names that are not UTF-8; rename them",
    "control_character": "names with control characters; rename them",
    "empty_segment": "names with //, /./ or /../, which cannot be addressed; rename them",
    "ambiguous_name": "files below a folder that is named like the inside of a container; rename the folder",
    "unreadable_folder": "folders that may not be read; mend their rights",
    "link_loop": "links that lead back to a folder they are in",
    "broken_link": "links to nothing",
    "not_a_file": "devices, sockets and pipes",
    "damaged_container": "containers that cannot be opened",
    "encrypted_member": "encrypted members of containers",
    "nested_container": "containers within containers; unpack the outer one",
    "unsafe_member": "members with an absolute path or .. in their names",
    "link_member": "links and devices within containers",
    "absurd_ratio": "members that inflate absurdly",
    "too_large": "members larger than a film may be",
    "unsupported_member": "members compressed in a way that is not read; use deflate",
    "repeated_member": "members that a later one of the same name replaces",
}
"""In words, for people."""
_HIDES_FILES: Final = {"unreadable_folder", "damaged_container"}
"""Kinds behind which there may be films that an earlier listing saw."""


@dataclass
class Ignored:
    """Counts what is left out; safe to use from several threads."""

    counts: dict[str, int] = field(default_factory=dict)
    """By kind, one of KINDS."""
    examples: dict[str, str] = field(default_factory=dict)
    """The first of each kind, escaped."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, kind: str, example: str, count: int = 1) -> None:
        """Count files of one kind."""
        assert kind in KINDS, kind
        if count:
            with self._lock:
                self.counts[kind] = self.counts.get(kind, 0) + count
                self.examples.setdefault(kind, escaped(example))

    @property
    def total(self) -> int:
        """All that was left out."""
        return sum(self.counts.values())

    @property
    def hides_files(self) -> bool:
        """Whether films may lie where the listing could not look; then a film that is not listed need not be gone."""
        return any(kind in _HIDES_FILES for kind in self.counts)

    def account(self) -> dict[str, dict[str, Any]]:
        """Kind -> how many, what it means, and an example; the commonest first."""
        ordered = sorted(self.counts, key=lambda kind: (-self.counts[kind], kind))
        return {kind: {"count": self.counts[kind], "example": self.examples[kind]} for kind in ordered}

    def in_words(self) -> str:
        """The account in one line."""
        return "; ".join(f"{self.counts[kind]} {KINDS[kind]}, e.g. {self.examples[kind]}" for kind in self.account())


def escaped(name: str) -> str:
    """A name in printable ASCII and letters: bytes that are no text and control characters as escapes."""
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in _bytes_shown(name)
    )
    return shown if len(shown) <= EXAMPLE_LENGTH else f"{shown[: EXAMPLE_LENGTH - 1]}…"


def _bytes_shown(name: str) -> str:
    """The bytes that are no UTF-8, which Python holds as lone surrogates, as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
