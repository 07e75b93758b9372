"""The patient of a film: the raw id, in memory only, and the key that may be written.

patient_key = HMAC-SHA256(secret, raw id). Equal keys show that two films are of one patient, but not of which patient;
without the secret, not even by trying all ids.
"""

import hmac
import logging
import os
import re
import secrets
from pathlib import PurePosixPath

SECRET_VARIABLE = "RAYSCAN_PATIENT_SECRET"  # noqa: S105 (the name of a variable)

log = logging.getLogger("rayscan")

_PNEUMONIA = re.compile(r"(person\d+_(bacteria|virus))_\d+", re.IGNORECASE)
_NORMAL = re.compile(r"((?:NORMAL2-)?IM-\d+)-\d+", re.IGNORECASE)


def kermany_patient(name: str) -> str | None:
    """Raw patient id in a Kermany file name, or None.

    `person1_bacteria_2.jpeg` is patient `person1_bacteria` (`person1_virus` may be another child);
    `IM-0115-0001.jpeg` is `IM-0115`; `NORMAL2-IM-0666-0001-0002.jpeg` is `NORMAL2-IM-0666`.
    """
    stem = PurePosixPath(name).name
    match = _PNEUMONIA.match(stem) or _NORMAL.match(stem)
    return match.group(1) if match else None


def kermany_subtype(name: str) -> str | None:
    """`bacteria` or `virus` from a Kermany file name, or None."""
    match = _PNEUMONIA.match(PurePosixPath(name).name)
    return match.group(2).lower() if match else None


class PatientKeys:
    """Turns raw patient ids into keys with one secret."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    @classmethod
    def from_environment(cls) -> "PatientKeys":
        """With the secret in RAYSCAN_PATIENT_SECRET, else with a random one that serves this catalogue only."""
        secret = os.environ.get(SECRET_VARIABLE)
        if not secret:
            log.info(
                "%s is not set, so the patient keys of this catalogue match no other; to make them match, set it"
                " to a long random text that stays the same and secret",
                SECRET_VARIABLE,
            )
        return cls(secret or secrets.token_hex(32))

    def key(self, raw_id: str) -> str:
        """The key of a raw id: 64 hexadecimal digits."""
        return hmac.digest(self._secret, raw_id.encode(), "sha256").hex()
