"""An archive of films of all formats, in which something is wrong with nearly every other file."""

import numpy as np

from pipelines.phantom import broken_files, dicom_bytes, encode
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
