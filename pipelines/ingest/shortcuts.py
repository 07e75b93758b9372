"""Shortcuts: what tells the classes apart and is not the disease. Facts about the file, and parts of the film.

Every fact alone, as an AUC; then small models, cross-validated by patient, on all facts, on what compression leaves in
the pixels, on the border, and, to compare, on the centre. Those on pixels are measured on the films as they are and as
`prepare --harmonise` would leave them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.statistics.metrics import auc
from pipelines.ingest.border import MASKS
from pipelines.ingest.looked import Film
from pipelines.ingest.probes import probe_facts, probe_pixels

SHORTCUT_AUC = 0.7
"""Above this AUC, one fact about the file separates the classes well enough for a model to rely on it."""
FACTS = {
    "size": "File size",
    "width": "Image width",
    "height": "Image height",
    "aspect_ratio": "Aspect ratio",
    "bytes_per_pixel": "Compression (bytes per pixel)",
    "format": "File format",
    "jpeg_quality": "JPEG quality",
    "jpeg_components": "Colour or grey JPEG",
}
PROBES = {
    "file": "The file: size, shape, format, compression",
    "texture": "What compression leaves in the pixels",
    "border": "Border and corners",
    "inside": "The ring inside the border",
    "centre": "The centre: the chest",
}
"""What is probed, in the order of the page. The centre is to stay."""
PARTS = {
    "corners": "Corners",
    "top": "Top edge",
    "bottom": "Bottom edge",
    "left": "Left edge",
    "right": "Right edge",
    "collimation": "Dark bars (collimation)",
    "text": "Markers and burned-in text",
}


def shortcuts(table: pa.Table) -> dict[str, float]:
    """AUC of each fact of FACTS that a catalogue knows about its files."""
    return _alone(_facts(table), table["label"].to_pylist())


def film_shortcuts(films: Sequence[Film]) -> dict[str, float]:
    """AUC of each fact of FACTS that only the files themselves tell."""
    return _alone(_film_facts(films), [film.row["label"] for film in films])


def _alone(facts: Mapping[str, npt.NDArray[np.float64]], names: Sequence[str | None]) -> dict[str, float]:
    labels = np.array([label == "PNEUMONIA" for label in names], dtype=np.int64)
    labelled = np.array([label is not None for label in names], dtype=bool)
    aucs = {}
    for fact, values in facts.items():
        use = labelled & np.isfinite(values)
        if len(set(labels[use])) == 2:
            aucs[fact] = round(_separation(labels[use], values[use]), 3)
    return aucs


def _facts(table: pa.Table) -> dict[str, npt.NDArray[np.float64]]:
    """Facts about each file as numbers [N]; NaN if unknown."""
    facts = {name: table[name].to_numpy().astype(np.float64) for name in ("size", "width", "height")}
    facts["aspect_ratio"] = facts["width"] / facts["height"]
    # The degree of compression: a setting of the scanner or of the export.
    facts["bytes_per_pixel"] = facts["size"] / (facts["width"] * facts["height"])
    formats = table["format"].to_pylist()
    order = [name for name, _ in Counter(formats).most_common()]
    facts["format"] = np.array([order.index(name) for name in formats], dtype=np.float64)
    return facts


def _film_facts(films: Sequence[Film]) -> dict[str, npt.NDArray[np.float64]]:
    """Facts that only the file itself tells."""
    return {
        "jpeg_quality": np.array([film.quality for film in films], dtype=np.float64),
        "jpeg_components": np.array([film.components for film in films], dtype=np.float64),
    }


def probe_films(films: Sequence[Film]) -> dict[str, dict[str, float | None]]:
    """The AUCs of PROBES; without films of both labels all are None."""
    films, labels, patients = _labelled(films)
    if len(set(labels.tolist())) < 2:
        return {name: {"before": None, "after": None} for name in PROBES}
    facts = _facts(pa.Table.from_pylist([_numbers(film.row) for film in films])) | _film_facts(films)
    textures = [np.array([film.texture[at] for film in films]) for at in (0, 1)]
    thumbs = [np.stack([film.thumb for film in films]), np.stack([film.harmonised for film in films])]
    probes: dict[str, dict[str, float | None]] = {
        "file": {"before": probe_facts(np.stack([*facts.values()], axis=1), labels, patients), "after": None},
        "texture": {
            when: probe_facts(values, labels, patients)
            for when, values in zip(("before", "after"), textures, strict=True)
        },
    }
    for part in ("border", "inside", "centre"):
        probes[part] = {
            when: probe_pixels(pixels[:, MASKS[part]].astype(np.float64), labels, patients)
            for when, pixels in zip(("before", "after"), thumbs, strict=True)
        }
    return probes


def border_parts(films: Sequence[Film]) -> dict[str, float | None]:
    """AUC of each of PARTS alone, before harmonising."""
    films, labels, patients = _labelled(films)
    if len(set(labels.tolist())) < 2:
        return dict.fromkeys(PARTS)
    thumbs = np.stack([film.thumb for film in films]).astype(np.float64)
    parts = {
        name: probe_pixels(thumbs[:, MASKS[name]], labels, patients)
        for name in ("corners", "top", "bottom", "left", "right")
    }
    parts["collimation"] = probe_facts(np.array([film.bars for film in films]), labels, patients)
    parts["text"] = probe_facts(np.array([film.specks for film in films]), labels, patients)
    return parts


def _labelled(films: Sequence[Film]) -> tuple[list[Film], npt.NDArray[np.int64], npt.NDArray[np.str_]]:
    """The films with a label, their labels as 0 and 1, and whose they are."""
    kept = [film for film in films if film.row["label"]]
    labels = np.array([film.row["label"] == "PNEUMONIA" for film in kept], dtype=np.int64)
    return kept, labels, np.array([film.row["patient_key"] or film.row["scan_id"] for film in kept], dtype=np.str_)


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {name: float("nan") if row[name] is None else float(row[name]) for name in ("size", "width", "height")}
    return sizes | {"format": row["format"]}


def _separation(labels: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> float:
    """AUC of one number, in the direction in which it is at least 0.5."""
    value = auc(labels, values)
    return max(value, 1.0 - value)
