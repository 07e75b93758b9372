"""The patient of a film: the raw id, in memory only, and the key that may be written.

The key is that of `pipelines/provenance.py`, which scoring uses, too.
"""

import hmac
import logging
import os
import re
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pipelines.decoding.placeholders import is_placeholder, is_shared
from pipelines.errors import InputError
from pipelines.provenance import patient_key

SECRET_VARIABLE = "RAYSCAN_PATIENT_SECRET"  # noqa: S105 (the name of a variable)

SHORTEST_SECRET = 16
"""Characters."""

log = logging.getLogger("rayscan")

_MENDELEY = re.compile(r"(BACTERIA|VIRUS|NORMAL)-(\d+)-\d+", re.IGNORECASE)
_PNEUMONIA = re.compile(r"(person\d+_(bacteria|virus))_\d+", re.IGNORECASE)
_NORMAL = re.compile(r"((?:NORMAL2-)?IM-\d+)-\d+", re.IGNORECASE)


def kermany_patient(name: str) -> str | None:
    """Raw patient id in a Kermany file name, or None.

    `person1_bacteria_2.jpeg` is patient `person1_bacteria` (`person1_virus` may be another child);
    `IM-0115-0001.jpeg` is `IM-0115`; `NORMAL2-IM-0666-0001-0002.jpeg` is `NORMAL2-IM-0666`. In the other naming of the
    same set, `BACTERIA-1008087-0001.jpeg`, the number is the patient's, whatever stands before it.
    """
    stem = PurePosixPath(name).name
    if found := _MENDELEY.match(stem):
        return found.group(2)
    match = _PNEUMONIA.match(stem) or _NORMAL.match(stem)
    return match.group(1) if match else None


def kermany_subtype(name: str) -> str | None:
    """`bacteria` or `virus` from a Kermany file name, or None."""
    stem = PurePosixPath(name).name
    if found := _MENDELEY.match(stem):
        kind = found.group(1).lower()
        return None if kind == "normal" else kind
    match = _PNEUMONIA.match(stem)
    return match.group(2).lower() if match else None


def patient_secret() -> str | None:
    """The secret in RAYSCAN_PATIENT_SECRET; None if it is not set. Raises `InputError` if it is easily guessed."""
    secret = os.environ.get(SECRET_VARIABLE)
    if secret and len(secret) < SHORTEST_SECRET:
        raise InputError(
            f"{SECRET_VARIABLE} has fewer than {SHORTEST_SECRET} characters, so patients could be found out by trying;"
            " set a long random text that stays the same and secret"
        )
    return secret or None


class PatientKeys:
    """Turns raw patient ids into keys with one secret."""

    def __init__(self, secret: str, *, is_random: bool = False) -> None:
        self._secret = secret
        self.is_random = is_random
        """Whether the keys match those of no other catalogue."""

    @classmethod
    def from_environment(cls) -> "PatientKeys":
        """With the secret in RAYSCAN_PATIENT_SECRET, else with a random one that serves this catalogue only."""
        secret = patient_secret()
        if not secret:
            log.info(
                "%s is not set, so the patient keys of this catalogue match no other; to make them match, set it"
                " to a long random text that stays the same and secret",
                SECRET_VARIABLE,
            )
        return cls(secret or secrets.token_hex(32), is_random=secret is None)

    def key(self, raw_id: str, issuer: str = "") -> str:
        """The key of a raw id, as `issuer` (who gave out the number, else the site) has it: 64 hexadecimal digits."""
        return patient_key(self._secret, raw_id, issuer)

    def fingerprint(self) -> str:
        """Tells two secrets apart, and neither."""
        return hmac.digest(self._secret.encode(), b"rayscan: which secret is this?", "sha256").hex()[:16]


@dataclass(frozen=True)
class Person:
    """A patient of one or several films."""

    identity: str = field(repr=False)
    """Raw, in memory only: equal for the films of one patient, and it places the patient in the split."""
    key: str
    """What may be written."""


@dataclass
class People:
    """The patients of films, by URI; ids that are no one's are counted and left out."""

    keys: PatientKeys
    of: dict[str, Person] = field(default_factory=dict, repr=False)
    placeholders: int = 0
    """Films with an id that is a placeholder, or shared by more films than one patient has."""

    def add(self, uri: str, raw_id: str | None, issuer: str | None) -> None:
        """Note whose film this is; a later call has the last word, if it knows."""
        if not raw_id:
            return
        if is_placeholder(raw_id):
            self.placeholders += 1
            return
        identity = f"{issuer}\0{raw_id}" if issuer else raw_id
        self.of[uri] = Person(identity, self.keys.key(raw_id, issuer or ""))

    def know(self, uri: str, key: str, identity: str) -> None:
        """Note whose film this is by a key that was made elsewhere."""
        self.of[uri] = Person(identity, key)

    def identities(self, films: Sequence[str]) -> list[str]:
        """What places each film in a split: equal for the films of one key, the URI where the patient is unknown."""
        identity: dict[str, str] = {}
        for person in self.of.values():
            identity[person.key] = min(identity.get(person.key, person.identity), person.identity)
        return [identity[found.key] if (found := self.of.get(uri)) else uri for uri in films]

    def drop_shared(self, films: Sequence[str]) -> None:
        """Forget the ids that stand on an absurd share of these films."""
        owned = {uri: self.of[uri].key for uri in films if uri in self.of}
        films_of = Counter(owned.values())
        shared = {key for key, count in films_of.items() if is_shared(count, len(films))}
        for uri, key in owned.items():
            if key in shared:
                del self.of[uri]
                self.placeholders += 1
