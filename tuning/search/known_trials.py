"""Trials whose parameters are known beforehand: the best of an earlier study, and finals of this one."""

import logging
from collections.abc import Sequence
from typing import Final

from models.errors import InputError
from models.spec import Scalar
from pipelines.storage import open_store
from tuning.spaces.space import SearchSpace
from tuning.study.records import TrialRecord, leaderboard
from tuning.study.store import read_study, read_trials

WARM: Final = 5
"""Trials of an earlier study that are tried first."""

log = logging.getLogger("rayscan")


def best_of(uri: str, space: SearchSpace, fingerprint: str) -> list[dict[str, Scalar]]:
    """The best `WARM` trials of the study at a URI as trials of this space, the best first.

    Those outside this space are skipped, which the log says; it also says whether the study is of the same films, those
    of this fingerprint. Raises `NotFoundError` where there is no study.
    """
    store = open_store(uri)
    earlier = read_study(store)
    if earlier.fingerprint == fingerprint:
        log.info("%s is a study of the same films (fingerprint %s)", uri, fingerprint)
    else:
        log.warning(
            "%s is a study of other films (fingerprint %s, these have %s): what was best there need not be best here",
            *(uri, earlier.fingerprint, fingerprint),
        )
    points: list[dict[str, Scalar]] = []
    ranked = [record for record in leaderboard(read_trials(store)) if record.kind != "baseline"]
    for record in ranked[:WARM]:
        try:
            points.append(space.translated(record.parameters))
        except InputError as error:
            log.warning("trial %d of %s is not tried here: %s", record.number, uri, error)
    log.info("%d of the %d best trials of %s will be tried first", len(points), len(ranked[:WARM]), uri)
    return points


def final_trials(records: Sequence[TrialRecord], size: int, count: int) -> list[dict[str, Scalar]]:
    """Of the `count` best trials, those on films of less than `size` pixels: their parameters with `size` instead.

    Left out are those that were trained so already.
    """
    done = [record.parameters for record in records if record.kind == "final"]
    ranked = [record for record in leaderboard(records) if record.kind == "search"]
    points: list[dict[str, Scalar]] = []
    for record in ranked[:count]:
        sides = [name for name in record.parameters if name == "resolution" or name.endswith("_resolution")]
        point: dict[str, Scalar] = {**record.parameters, **dict.fromkeys(sides, size)}
        if any(record.parameters[name] != size for name in sides) and point not in done:
            points.append(point)
    return points
