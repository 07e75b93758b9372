"""What in an archive would spoil a study: imbalance, duplicates, patients in two splits, shortcuts, broken files.

Reads a catalogue only. Duplicates, broken files and image sizes need one made with `--inspect`; the audit says so if
it was not.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.spec import DISCLAIMER
from models.statistics.metrics import auc
from pipelines.contracts import EXCLUDED
from pipelines.ingest.catalog import read_catalog
from pipelines.storage import open_store

SHORTCUT_AUC = 0.7
"""Above this AUC, one fact about the file separates the classes well enough for a model to rely on it."""
FACTS = {
    "size": "File size",
    "width": "Image width",
    "height": "Image height",
    "bytes_per_pixel": "Compression (bytes per pixel)",
    "format": "File format",
}


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The findings; `verdicts` puts them into sentences."""

    catalog: str
    scans: int
    splits: Mapping[str, Mapping[str, int]]
    """Split -> label -> films."""
    patients: int
    shared_patients: int
    """Patients with films in more than one of train, val and test."""
    copies: int | None
    """Files whose bytes are identical to another file's; None without --inspect."""
    copies_across: int | None
    """Groups of identical files in more than one of train, val and test, or with more than one label."""
    problems: Mapping[str, int] | None
    """Files that cannot be read, by reason; None without --inspect."""
    shortcuts: Mapping[str, float]
    """Fact -> AUC, 0.5 to 1, with which this fact about the file alone separates pneumonia from normal."""
    verdicts: tuple[str, ...]
    notice: str = DISCLAIMER

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def audit(catalog: str) -> Audit:
    """Audit the catalogue at a URI. Raises `InputError` if there is none."""
    table = read_catalog(catalog)
    rows = table.select(["split", "label", "patient_key", "content_hash", "problem"]).to_pylist()
    inspected = any(row["content_hash"] for row in rows)
    splits: dict[str, Counter[str]] = defaultdict(Counter)
    splits_of_patient: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row["label"]:
            splits[row["split"] or "none"][row["label"]] += 1
        if row["patient_key"]:
            splits_of_patient[row["patient_key"]].add(row["split"])
    copies, across = _copies(rows)
    facts: dict[str, Any] = {
        "scans": len(rows),
        "splits": {name: dict(sorted(labels.items())) for name, labels in sorted(splits.items())},
        "patients": len(splits_of_patient),
        "shared_patients": sum(len(own - {EXCLUDED, None}) > 1 for own in splits_of_patient.values()),
        "copies": copies if inspected else None,
        "copies_across": across if inspected else None,
        "problems": dict(Counter(r["problem"] for r in rows if r["problem"])) if inspected else None,
        "shortcuts": _shortcuts(table),
    }
    return Audit(catalog=open_store(catalog).root, **facts, verdicts=tuple(_verdicts(facts)))


def _copies(rows: list[dict[str, Any]]) -> tuple[int, int]:
    """Duplicates, and groups of them in two splits or with two labels; files that cannot be read (empty ones) aside."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["content_hash"] and not row["problem"]:
            groups[row["content_hash"]].append(row)
    across = sum(
        len({row["split"] for row in group} - {EXCLUDED, None}) > 1 or len({row["label"] for row in group} - {None}) > 1
        for group in groups.values()
    )
    return sum(len(group) - 1 for group in groups.values()), across


def _shortcuts(table: pa.Table) -> dict[str, float]:
    labels = np.array([label == "PNEUMONIA" for label in table["label"].to_pylist()], dtype=np.int64)
    labelled = table["label"].is_valid().to_numpy()
    aucs = {}
    for fact, values in _facts(table).items():
        use = labelled & np.isfinite(values)
        if len(set(labels[use])) == 2:
            aucs[fact] = round(_separation(labels[use], values[use]), 3)
    return aucs


def _facts(table: pa.Table) -> dict[str, npt.NDArray[np.float64]]:
    """Facts about each file as numbers [N]; NaN if unknown."""
    facts = {name: table[name].to_numpy().astype(np.float64) for name in ("size", "width", "height")}
    # The degree of compression: a setting of the scanner or of the export.
    facts["bytes_per_pixel"] = facts["size"] / (facts["width"] * facts["height"])
    formats = table["format"].to_pylist()
    order = [name for name, _ in Counter(formats).most_common()]
    facts["format"] = np.array([order.index(name) for name in formats], dtype=np.float64)
    return facts


def _separation(labels: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> float:
    """AUC of one number, in the direction in which it is at least 0.5."""
    value = auc(labels, values)
    return max(value, 1.0 - value)


def _verdicts(facts: Mapping[str, Any]) -> list[str]:
    sentences = []
    for split, labels in facts["splits"].items():
        if len(labels) == 1 and split != EXCLUDED:
            sentences.append(f"{split} holds only {next(iter(labels))}: nothing can be learned or evaluated on it.")
    if facts["shared_patients"]:
        sentences.append(f"{facts['shared_patients']} patients have films in two splits: results would be too good.")
    if facts["copies_across"]:
        sentences.append(f"{facts['copies_across']} groups of identical files lie in two splits or have two labels.")
    for fact, value in facts["shortcuts"].items():
        if value >= SHORTCUT_AUC:
            sentences.append(
                f"{FACTS[fact]} alone separates the classes (AUC {value}):"
                " a model may learn how the films were made, not the disease."
            )
    if facts["problems"]:
        sentences.append(f"{sum(facts['problems'].values())} files cannot be read.")
    if facts["problems"] is None:
        sentences.append("Duplicates, broken files, image sizes: not checked; make the catalogue with --inspect.")
    return sentences or ["Nothing was found that would spoil a study."]
