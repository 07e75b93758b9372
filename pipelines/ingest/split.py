"""Splits that keep all films of a patient in one split, stratified and seeded.

Patients are shuffled by a hash of seed and id, so a patient's position does not depend on the order of the listing.
Within each stratum the next patient goes to the split that is furthest below its share of films.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from hashlib import blake2b

from pipelines.contracts import EXCLUDED
from pipelines.splits import SPLITS


def assign_splits(
    *,
    patients: Sequence[str],
    strata: Sequence[str],
    kept: Sequence[str | None],
    fractions: Mapping[str, float],
    seed: int,
) -> list[str]:
    """The split of each film, if some films already have one (`kept`); all sequences have one entry per film.

    A patient with kept films belongs to test if any of them is in test, else to val, else to train. Other films of a
    test or val patient are `excluded`; those of a train patient join train. All other patients are assigned by
    `split_patients`.
    """
    homes: dict[str, str] = {}
    for patient, split in zip(patients, kept, strict=True):
        if split:
            homes[patient] = max(homes.get(patient, split), split, key=SPLITS.index)
    free = [i for i, patient in enumerate(patients) if patient not in homes]
    dealt = split_patients([patients[i] for i in free], [strata[i] for i in free], fractions=fractions, seed=seed)
    splits = [
        home if (home := homes.get(patient, "")) in {split, "train"} else EXCLUDED
        for patient, split in zip(patients, kept, strict=True)
    ]
    for i, split in zip(free, dealt, strict=True):
        splits[i] = split
    return splits


def split_patients(
    patients: Sequence[str], strata: Sequence[str], *, fractions: Mapping[str, float], seed: int
) -> list[str]:
    """The split of each film.

    `patients` and `strata` have one entry per film; `fractions` gives each split's share of the films, summing to 1. A
    patient with films of several strata counts as one of the rarest of them.
    """
    films = Counter(patients)
    stratum_of = strata_of_patients(patients, strata)
    members: dict[str, list[str]] = defaultdict(list)
    for patient in sorted(films, key=lambda patient: _place(seed, patient)):
        members[stratum_of[patient]].append(patient)
    side: dict[str, str] = {}
    for stratum in sorted(members):
        side |= _deal(members[stratum], films, fractions)
    return [side[patient] for patient in patients]


def strata_of_patients(patients: Sequence[str], strata: Sequence[str]) -> dict[str, str]:
    """The stratum of each patient, the rarest of those of its films; both have one entry per film."""
    size = Counter(strata)
    stratum_of: dict[str, str] = {}
    for patient, stratum in zip(patients, strata, strict=True):
        rarest = stratum_of.setdefault(patient, stratum)
        if (size[stratum], stratum) < (size[rarest], rarest):
            stratum_of[patient] = stratum
    return stratum_of


def _deal(patients: Sequence[str], films: Mapping[str, int], fractions: Mapping[str, float]) -> dict[str, str]:
    total = sum(films[patient] for patient in patients)
    lacking = {name: share * total for name, share in fractions.items() if share > 0}
    side = {}
    for patient in patients:
        name = max(lacking, key=lambda split: lacking[split])
        side[patient] = name
        lacking[name] -= films[patient]
    return side


def _place(seed: int, patient: str) -> bytes:
    return blake2b(f"{seed}:{patient}".encode(), digest_size=16).digest()
