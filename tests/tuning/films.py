"""A tiny prepared dataset: noise, and noise with a bright blob."""

import json
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.spec import Preprocessing
from pipelines import contracts
from pipelines.storage import open_store

SIZE = 32


def write_dataset(uri: str, *, films: int = 280, seed: int = 0, fingerprint: str = "blobs") -> None:
    """One film a patient; five of seven to train, the others to val; every other one has a blob."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(60, 120, (films, SIZE, SIZE))
    for film in pixels[1::2]:
        row, column = rng.integers(4, SIZE - 10, 2)
        film[row : row + 6, column : column + 6] += 45
    labels = [contracts.LABELS[index % 2] for index in range(films)]
    schema = contracts.dataset_schema(SIZE)
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(pixels.astype(np.uint8))
    names = [f"{index:032x}" for index in range(films)]
    columns = {
        "scan_id": names,
        "uri": [f"file:///films/{name}" for name in names],
        "pixels": tensor,
        "label": labels,
        "subtype": [None if label == "NORMAL" else "virus" for label in labels],
        "split": ["train" if index % 7 < 5 else "val" for index in range(films)],
        "patient_key": names,
    }
    absent = {field.name: pa.nulls(films, field.type) for field in schema if field.name not in columns}
    table = pa.table({**columns, **absent}).select(schema.names).cast(schema)
    store = open_store(uri)
    counts, parts = {}, {}
    for split in ("train", "val"):
        rows = table.filter(pc.equal(table["split"], split))
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink)
        parts[split] = [f"blobs-{split}.parquet"]
        store.put(parts[split][0], sink.getvalue().to_pybytes())
        counts[split] = {label: rows["label"].to_pylist().count(label) for label in contracts.LABELS}
    info = {
        "size": SIZE,
        "preprocessing": asdict(Preprocessing(size=SIZE)),
        "fingerprint": fingerprint,
        "counts": counts,
        "parts": parts,
    }
    store.put("dataset.json", json.dumps(info).encode())
