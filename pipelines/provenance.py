"""Where a scan is from and whose it is: its site, and the key of its patient.

patient_key = HMAC-SHA256(secret, issuer NUL raw id). Equal keys show that two films are of one patient, but not of
which patient; without the secret, not even by trying all ids. The issuer is the header's IssuerOfPatientID, else the
site, so that the equal numbers of two hospitals stay two people.
"""

import hmac
from dataclasses import dataclass, field
from typing import Final, Protocol

from models.errors import InputError

INSTITUTION: Final = "institution"
"""`--site-from institution`: the header's InstitutionName. Otherwise the number of a folder below the archive."""


class Header(Protocol):
    """What of a scan's header (`pipelines/decoding/dicom.py`) tells where it is from; this module stays light."""

    @property
    def institution(self) -> str | None:
        """InstitutionName."""

    @property
    def patient_id(self) -> str | None:
        """The raw id."""

    @property
    def issuer(self) -> str | None:
        """IssuerOfPatientID."""


def check_site(site: str | None, site_from: str | None) -> None:
    """Raise `InputError` unless at most one of the two is given, and the second is one of those above."""
    if site and site_from:
        raise InputError("--site names one site for all scans, --site-from reads it from each: give one of them")
    if site_from in {None, INSTITUTION}:
        return
    if not str(site_from).isdecimal() or int(str(site_from)) < 1:
        raise InputError(f"--site-from {site_from!r}: write institution, or the number of a folder, from 1")


def patient_key(secret: str, raw_id: str, issuer: str = "") -> str:
    """The key of a raw patient id: 64 hexadecimal digits."""
    return hmac.digest(secret.encode(), f"{issuer}\0{raw_id}".encode(), "sha256").hex()


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How site and patient of a scan are told where no catalogue says them."""

    site: str | None = None
    """The site of all scans."""
    site_from: str | None = None
    """Where the site of each scan stands: `institution` (the header's InstitutionName) or the number of a folder of its
    URI below `root`, from 1."""
    root: str = ""
    """URI of the archive."""
    secret: str | None = field(default=None, repr=False)
    """Of the patient keys; without it there are none."""

    def site_of(self, uri: str, header: Header | None) -> str | None:
        """The site of a scan, None where it is not said."""
        if self.site_from is None:
            return self.site
        if self.site_from == INSTITUTION:
            return header.institution if header else None
        folders = uri.removeprefix(self.root).strip("/").split("/")[:-1]
        number = int(self.site_from)
        return folders[number - 1] if number <= len(folders) else None

    def patient_of(self, header: Header | None, site: str | None) -> str | None:
        """The key of a scan's patient, None where the header or the secret is missing."""
        if header is None or header.patient_id is None or self.secret is None:
            return None
        return patient_key(self.secret, header.patient_id, header.issuer or site or "")
