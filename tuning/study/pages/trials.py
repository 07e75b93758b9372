"""The trials of a study as its page shows them, read by the contract and not through the search's own code."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts import TRIALS
from pipelines.errors import InputError, NotFoundError
from pipelines.pages.frame import plain
from pipelines.storage import Store

LATENCY: Final = "latency_ms"
"""A column that studies of several objectives have beyond the contract: milliseconds a film."""
_NOT_PARAMETERS: Final = frozenset({"family", "baseline"})
"""Have their own column."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A row of contracts.TRIALS, read for showing."""

    trial_id: str
    number: int
    status: str
    family: str
    baseline: bool
    auc: float | None
    epochs: int
    seconds: float
    parameters: Mapping[str, Any]
    """Without the family."""
    curve: Sequence[tuple[int, float]]
    """(epoch, AUC)."""
    error: str | None
    finished_at: datetime
    latency: float | None

    @property
    def started_at(self) -> datetime:
        """As far as its own time tells."""
        return self.finished_at - timedelta(seconds=self.seconds)

    @property
    def in_words(self) -> str:
        """Its parameters."""
        return plain(self.parameters)

    @property
    def value(self) -> float:
        """The AUC of a trial that has one."""
        assert self.auc is not None
        return self.auc


def read_trials(store: Store) -> list[Trial]:
    """Every finished trial in the order of its number; none where the table is not there yet."""
    try:
        table = pq.read_table(pa.BufferReader(store.get("trials.parquet")))
        known = [*TRIALS.names, *({LATENCY} & set(table.column_names) - set(TRIALS.names))]
        # probes, heads on frozen features, are rows and no trials
        trials = [
            _trial(row) for row in table.select(known).to_pylist() if not json.loads(row["parameters"]).get("probe")
        ]
    except NotFoundError:
        return []
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{store.uri('trials.parquet')} is not a table of trials of this version of rayscan: {error}"
        ) from error
    return sorted(trials, key=lambda trial: trial.number)


def _trial(row: dict[str, Any]) -> Trial:
    parameters = json.loads(row["parameters"])
    return Trial(
        trial_id=row["trial_id"],
        number=row["number"],
        status=row["status"],
        family=row["model"] or "not recorded",
        baseline=bool(parameters.get("baseline")),
        auc=_finite(row["auc"]),
        epochs=row["epochs"],
        seconds=row["seconds"],
        parameters={name: value for name, value in parameters.items() if name not in _NOT_PARAMETERS},
        curve=[(epoch["epoch"], epoch["val_auc"]) for epoch in json.loads(row["history"])],
        error=row["error"],
        finished_at=row["finished_at"],
        latency=_finite(row.get(LATENCY)),
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
