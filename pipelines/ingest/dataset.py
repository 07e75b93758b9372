"""The prepared data set: what `prepare` writes and training reads. Imports no ray.

DATASET/<token>-00000.parquet   rows of contracts.dataset_schema
DATASET/dataset.json            written last: size, preprocessing, counts, fingerprint, parts
"""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.films import Films
from models.spec import Preprocessing
from pipelines.contracts import LABELS
from pipelines.errors import InputError, NotFoundError
from pipelines.storage import Store, open_store

MANIFEST = "dataset.json"
READ_THREADS = 8
_ROWS = ["scan_id", "label", "subtype", "patient_key", "split"]

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What dataset.json says."""

    size: int
    """Side of the square films in pixels."""
    preprocessing: Preprocessing
    fingerprint: str
    """Hash of scan ids, labels, splits and preprocessing: equal for equal data, wherever it lies."""
    counts: Mapping[str, Mapping[str, int]]
    """Split -> label -> films."""
    parts: tuple[str, ...]


def read_dataset_info(uri: str) -> DatasetInfo:
    """Read dataset.json. Raises `InputError` when there is no data set."""
    store = open_store(uri)
    try:
        value: dict[str, Any] = json.loads(store.get(MANIFEST))
        return DatasetInfo(
            size=value["size"],
            preprocessing=Preprocessing(**value["preprocessing"]),
            fingerprint=value["fingerprint"],
            counts=value["counts"],
            parts=tuple(value["parts"]),
        )
    except (NotFoundError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{store.root}: no data set here; make one with `rayscan prepare`") from error


def load_films(uri: str, split: str) -> Films:
    """The films of one split, in the order of their scan ids. Raises `InputError` when the split has none."""
    info = read_dataset_info(uri)
    store = open_store(uri)
    with ThreadPoolExecutor(READ_THREADS) as threads:
        parts = list(threads.map(lambda part: _read_part(store, part, split), info.parts))
    table = pa.concat_tables([rows for rows, _ in parts])
    if table.num_rows == 0:
        have = ", ".join(name for name, films in info.counts.items() if films) or "none"
        raise InputError(f"{store.root}: no films in split {split!r}; it has {have}")
    order = pc.sort_indices(table["scan_id"]).to_numpy()
    table = table.take(order)
    return Films(
        pixels=_gathered([pixels for _, pixels in parts], order, info.size),
        labels=np.array([LABELS.index(label) for label in table["label"].to_pylist()], dtype=np.int64),
        patients=pc.coalesce(table["patient_key"], table["scan_id"]).to_numpy().astype(str),
        subtypes=pc.fill_null(table["subtype"], "").to_numpy().astype(str),
        scan_ids=table["scan_id"].to_numpy().astype(str),
    )


def _gathered(parts: list[Pixels], order: npt.NDArray[np.int64], size: int) -> Pixels:
    """One array [N, size, size] from those of the parts, in this order of their concatenation."""
    gathered = np.empty((len(order), size, size), dtype=np.uint8)
    place = np.argsort(order)
    start = 0
    for pixels in parts:
        gathered[place[start : start + len(pixels)]] = pixels
        start += len(pixels)
    return gathered


def _read_part(store: Store, part: str, split: str) -> tuple[pa.Table, Pixels]:
    """The rows of one split without pixels, and their pixels: Arrow picks tensor rows a hundred times slower."""
    table = pq.read_table(pa.BufferReader(store.get(part)), columns=[*_ROWS, "pixels"]).combine_chunks()
    wanted = pc.equal(table["split"], split).to_numpy()
    pixels = table["pixels"].chunk(0).to_numpy_ndarray()
    return table.select(_ROWS).filter(wanted), pixels[wanted]
