"""An archive of films of all formats, in which something is wrong with nearly every other file."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom

from models.bundle import Bundle, load_bundle
from models.intended_use import IntendedUse
from pipelines.decoding.film import ReadSettings
from pipelines.phantom import broken_files, dicom_bytes, encode
from pipelines.scoring.plan import Plan, make_plan
from pipelines.storage import Store

GOOD = 9
BAD = {
    "damaged/empty.jpeg": ("unreadable", "empty_file"),
    "damaged/truncated.jpeg": ("unreadable", "truncated"),
    "damaged/text_renamed.jpeg": ("unreadable", "unknown_format"),
    "damaged/zero_size.png": ("unreadable", "no_pixels"),
    "damaged/blank.png": ("rejected", "blank"),
    "hip.dcm": ("rejected", "not_chest"),
    "lateral.dcm": ("rejected", "not_frontal"),
}
"""Key -> what must become of it; everything else is scored."""


def write_films(store: Store) -> int:
    """Fill an archive: films of all formats and one of each fault; returns how many files."""
    rng = np.random.default_rng(5)
    for number in range(GOOD):
        pixels = rng.integers(0, 255, (40, 48), dtype=np.uint8)
        suffix = ("jpeg", "png", "dcm")[number % 3]
        data = dicom_bytes(pixels) if suffix == "dcm" else encode(pixels, suffix)  # type: ignore[arg-type]
        store.put(f"films/{number}.{suffix}", data)
    pixels = rng.integers(0, 255, (40, 48), dtype=np.uint8)
    damaged = broken_files(1)
    for key in BAD:
        if key.startswith("damaged/"):
            store.put(key, damaged[key.removeprefix("damaged/")])
    store.put("hip.dcm", dicom_bytes(pixels, body_part="HIP"))
    store.put("lateral.dcm", dicom_bytes(pixels, view="LL"))
    return GOOD + len(BAD)


def of_class(pixels: npt.NDArray[np.uint8], uid: str) -> bytes:
    """A film's DICOM file that says it is an object of another SOP class."""
    dataset = pydicom.dcmread(BytesIO(dicom_bytes(pixels)))
    dataset.SOPClassUID = uid
    del dataset.PresentationIntentType
    out = BytesIO()
    dataset.save_as(out)
    return out.getvalue()


def reads(model: Bundle) -> ReadSettings:
    """How the films of a model are read; it is for DX alone."""
    return ReadSettings(preprocessing=model.spec.preprocessing, intended_use=IntendedUse(modalities=("DX",)))


def plan_of(out: Store, archive: Store, bundle: Path, **options: Any) -> Plan:
    """A plan of the whole archive that nobody has begun; `options` are those of `make_plan`."""
    return make_plan(
        out,
        source=archive.root,
        bundle=str(bundle),
        model_id=load_bundle(bundle).model_id,
        operating_point="balanced",
        **options,
    )
