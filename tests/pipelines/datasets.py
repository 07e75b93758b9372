"""Prepared data sets of any films."""

import json
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.films import Films
from models.spec import Preprocessing
from pipelines.storage import Store


def write_dataset(store: Store, preprocessing: Preprocessing, splits: Mapping[str, Films]) -> None:
    """These films, by split, as `prepare` would leave them, from two sites, in widths from 700 pixels up."""
    counts = {}
    for split, films in splits.items():
        names = np.where(films.labels == 1, "PNEUMONIA", "NORMAL")
        columns = {
            "scan_id": films.scan_ids,
            "uri": [f"s3://films/{number}.png" for number in range(len(films))]
            if films.places is None
            else films.places,
            "label": names,
            "subtype": films.subtypes,
            "patient_key": films.patients,
            "site": np.where(np.arange(len(films)) % 3, "north", "south"),
            "view": pa.array([None] * len(films), pa.string()),
            "study_date": pa.nulls(len(films), pa.date32()),
            "modality": pa.nulls(len(films), pa.string()),
            "manufacturer": pa.nulls(len(films), pa.string()),
            "age_years": pa.nulls(len(films), pa.int16()),
            "presentation_intent": pa.nulls(len(films), pa.string()),
            "width": pa.array(700 + 20 * np.arange(len(films)), pa.int32()),
            "pixels": pa.FixedShapeTensorArray.from_numpy_ndarray(films.pixels),
        }
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink)
        store.put(f"{split}.parquet", sink.getvalue().to_pybytes())
        counts[split] = {label: int((names == label).sum()) for label in ("NORMAL", "PNEUMONIA")}
    info = {
        "size": preprocessing.size,
        "preprocessing": asdict(preprocessing),
        "fingerprint": "9f3c",
        "counts": counts,
        "parts": {split: [f"{split}.parquet"] for split in splits},
    }
    store.put("dataset.json", json.dumps(info).encode())
