"""Patient ids that are no one's: what devices and anonymisers write where an id should stand.

Taken for one patient, all such films would go into one split and count as copies of each other.
"""

import re
from typing import Final

_WORDS: Final = {
    "ANON", "ANONYM", "ANONYMOUS", "ANONYMIZED", "ANONYMISED", "ANONYMOUSPATIENT", "DEIDENTIFIED", "EMERGENCY", "ID",
    "NA", "NAN", "NIL", "NOID", "NONAME", "NONE", "NOTAVAILABLE", "NULL", "PATIENT", "PATIENTID", "REMOVED", "TEST",
    "UNKNOWN", "UNNAMED", "UNBEKANNT",
}  # fmt: skip
_SAME: Final = re.compile(r"(.)\1*")
SHARED_FILMS: Final = 100
SHARED_PERCENT: Final = 20
"""An id with at least so many films, and more than this share of an archive's, is taken for a placeholder."""


def is_placeholder(patient_id: str) -> bool:
    """Whether an id is one of the usual placeholders: no letter or digit, 0 or X over and over, or a word for none."""
    core = re.sub(r"[\W_]+", "", patient_id).upper()
    return not core or core in _WORDS or (_SAME.fullmatch(core) is not None and core[0] in "0X")


def is_shared(films: int, of: int) -> bool:
    """Whether so many films of an archive cannot be one patient's."""
    return films >= SHARED_FILMS and 100 * films > SHARED_PERCENT * of
