"""The prepared data set: what `prepare` writes and training reads. Imports no ray.

DATASET/<token>-00000.parquet   rows of contracts.dataset_schema
DATASET/dataset.json            written last: size, preprocessing, counts, fingerprint, parts
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.films import Films
from pipelines.contracts import LABELS
from pipelines.errors import InputError
from pipelines.ingest.dataset_info import MANIFEST, DatasetInfo, check_fits, read_dataset_info, require_split
from pipelines.storage import Store, open_store

__all__ = ["MANIFEST", "DatasetInfo", "check_fits", "load_films", "read_dataset_info"]

READ_THREADS = 8
_ROWS = ["scan_id", "uri", "label", "subtype", "patient_key", "study_date"]
_NAMED = ["site", "view", "modality", "manufacturer", "presentation_intent"]
_BANDS = {"width": (0, 800, 1200, 1600, 2000), "age_years": (0, 1, 5, 18, 40, 65)}
"""Lower bounds of the groups by width, in pixels of the original file, and by age, in years."""
_GROUPS = [*_NAMED, *_BANDS]
"""Columns whose values define the subgroups of an evaluation."""

Pixels = npt.NDArray[np.uint8]


def load_films(uri: str, split: str) -> Films:
    """The films of one split, in the order of their scan ids.

    Raises `InputError` if there is no data set, the split has no films, or a part is missing or unreadable.
    """
    info = read_dataset_info(uri)
    store = open_store(uri)
    require_split(info, split, store.root)
    parts = info.parts[split]
    pixels = np.empty((sum(info.counts[split].values()), info.size, info.size), dtype=np.uint8)
    tables: list[pa.Table] = []
    start = 0
    with ThreadPoolExecutor(READ_THREADS) as threads:
        for rows, part_pixels in threads.map(lambda part: _read_part(store, part), parts):
            pixels[start : start + len(part_pixels)] = part_pixels
            tables.append(rows)
            start += len(part_pixels)
    table = pa.concat_tables(tables)
    return Films(
        pixels=pixels,
        labels=np.array([LABELS.index(label) for label in table["label"].to_pylist()], dtype=np.int64),
        patients=pc.coalesce(table["patient_key"], table["scan_id"]).to_numpy().astype(str),
        subtypes=pc.fill_null(table["subtype"], "").to_numpy().astype(str),
        scan_ids=table["scan_id"].to_numpy().astype(str),
        places=np.array(places(table["uri"].to_pylist(), table["study_date"].to_pylist())),
        groups={name: _named(table[name]) for name in _NAMED} | {name: _banded(table[name], name) for name in _BANDS},
    )


def places(uris: Sequence[str], days: Sequence[date | None]) -> list[str]:
    """Of each film a text that sorts in the archive's own order: by study date, if known, then by numbers in its URI.

    `film-9.png` comes before `film-10.png`.
    """
    numbered = (re.sub(r"\d+", lambda number: number[0].zfill(12), uri) for uri in uris)
    return [f"{day or ''} {uri}" for day, uri in zip(days, numbered, strict=True)]


def _named(column: pa.ChunkedArray) -> npt.NDArray[np.str_]:
    """The subgroup of each film; empty if the column is null."""
    values: npt.NDArray[np.str_] = pc.fill_null(column, "").to_numpy(zero_copy_only=False).astype(str)
    return values


def _banded(column: pa.ChunkedArray, name: str) -> npt.NDArray[np.str_]:
    """The same of a number, by the band in which it lies."""
    unit = {"width": "px", "age_years": "years"}[name]
    low = np.array(_BANDS[name])
    names = [f"{a} to {b - 1} {unit}" for a, b in pairwise(low)] + [f"{low[-1]} {unit} and more"]
    known = pc.fill_null(column, -1).to_numpy()
    return np.where(known < 0, "", np.array(names)[np.searchsorted(low, known, side="right") - 1])


def _read_part(store: Store, part: str) -> tuple[pa.Table, Pixels]:
    """The rows without pixels, and the pixels [n, size, size]."""
    try:
        table = pq.read_table(pa.BufferReader(store.get(part)), columns=[*_ROWS, *_GROUPS, "pixels"]).combine_chunks()
    except pa.ArrowException as error:
        raise InputError(f"{store.uri(part)}: not a readable part; run `rayscan prepare` again") from error
    return table.select([*_ROWS, *_GROUPS]), table["pixels"].chunk(0).to_numpy_ndarray()
