"""Films dealt to folds, all films of a patient to one.

    random   patients at random, stratified by label and subtype: other patients of the same time and place
    blocks   within each stratum, consecutive patients in the archive's own order (study date, else the numbers in file
             names): what changed over the years an archive was filled lies between the blocks
    site     whole hospitals

What differs between blocks, or sites, is the best hint that one archive holds of the next year or the next hospital.
Random folds share it, and so promise more (Roberts et al. 2017, "Cross-validation strategies for data with temporal,
spatial, hierarchical, or phylogenetic structure").
"""

from collections import Counter

import numpy as np
import numpy.typing as npt

from models.errors import InputError
from models.films import Films
from pipelines.ingest.split import split_patients, strata_of_patients
from tuning.recipes.choices import Folds

FoldOf = npt.NDArray[np.int64]
"""The fold of each film [N], from 1."""


def deal(films: Films, folds: Folds, seed: int) -> FoldOf:
    """The fold of each film. Only `random` depends on the seed; there are no more folds than sites.

    Raises `InputError` if a fold would lack films with or without disease, or what `folds.by` goes by is not known.
    """
    if folds.by == "random":
        fold_of = _random(films, folds.count, seed)
    elif folds.by == "blocks":
        fold_of = _blocks(films, folds.count)
    else:
        fold_of = _sites(films, folds.count)
    count = int(fold_of.max()) if folds.by == "site" else folds.count
    for number in range(1, count + 1):
        if len(set((films.labels[fold_of == number] != 0).tolist())) < 2:
            raise InputError(
                f"fold {number} of {count} would not have films both with and without disease; choose fewer --folds, or"
                " prepare a larger dataset"
            )
    return fold_of


def strata(films: Films) -> list[str]:
    """Label and subtype of each film."""
    return [f"{label} {subtype}" for label, subtype in zip(films.labels, films.subtypes, strict=True)]


def _random(films: Films, count: int, seed: int) -> FoldOf:
    fractions = {str(number): 1 / count for number in range(1, count + 1)}
    return np.array(split_patients(films.patients.tolist(), strata(films), fractions=fractions, seed=seed), dtype=int)


def _blocks(films: Films, count: int) -> FoldOf:
    if films.places is None:
        raise InputError("the order of these films is not known; prepare the dataset again, or choose --folds random")
    patients, place = films.patients.tolist(), films.places.tolist()
    own = Counter(patients)
    first = {patient: where for where, patient in sorted(zip(place, patients, strict=True), reverse=True)}
    stratum_of = strata_of_patients(patients, strata(films))
    total = Counter(stratum_of[patient] for patient in patients)
    before: Counter[str] = Counter()
    fold_of = {}
    for patient in sorted(own, key=lambda patient: (first[patient], patient)):
        stratum = stratum_of[patient]
        middle = before[stratum] + own[patient] / 2
        fold_of[patient] = min(count, 1 + int(middle * count / total[stratum]))
        before[stratum] += own[patient]
    return np.array([fold_of[patient] for patient in patients], dtype=int)


def _sites(films: Films, count: int) -> FoldOf:
    names = films.groups.get("site")
    if names is None or not names.all():
        raise InputError(
            "the site of some films is not known; catalogue them with --site or --site-from, or choose --folds blocks"
        )
    patients = films.patients.tolist()
    site_of = dict(zip(reversed(patients), reversed(names.tolist()), strict=True))
    films_of = Counter(site_of[patient] for patient in patients)
    if len(films_of) < 2:
        raise InputError(f"all films are of one site, {next(iter(films_of))}; choose --folds blocks")
    load = dict.fromkeys(range(1, min(count, len(films_of)) + 1), 0)
    fold_of = {}
    for site in sorted(films_of, key=lambda site: (-films_of[site], site)):
        fold_of[site] = min(load, key=lambda number: load[number])
        load[fold_of[site]] += films_of[site]
    return np.array([fold_of[site_of[patient]] for patient in patients], dtype=int)
