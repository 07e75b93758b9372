"""Small films for the tests of this room, made without the phantoms so that a fault there does not show up here."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from pipelines.ingest.catalog import CatalogSettings, build_catalog

SECRETS = ("DOE^JANE", "19341231", "ACC-77-XYZ", "MRN-0042")
"""Name, birth date, accession number and patient id in every DICOM file made here."""


def ramp(width: int = 96, height: int = 80) -> npt.NDArray[np.uint8]:
    """Grey levels [height, width] that rise from left to right, with a dark bar across: any flip or inversion shows."""
    film = np.tile(np.linspace(20, 235, width), (height, 1))
    film[: height // 4] /= 2
    return film.astype(np.uint8)


def encode(image: npt.NDArray[Any] | Image.Image, form: str = "png", **options: Any) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def dataset(stored: npt.NDArray[Any], **tags: Any) -> FileDataset:
    """A DICOM file of stored values [H, W], uncompressed; `tags` override or, where None, remove."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["film"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.PatientName, file.PatientBirthDate, file.AccessionNumber, file.PatientID = SECRETS
    file.Modality, file.BodyPartExamined, file.ViewPosition, file.StudyDate = "DX", "CHEST", "PA", "20240229"
    file.Rows, file.Columns = stored.shape[:2]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = 8 * stored.dtype.itemsize
    file.BitsAllocated, file.BitsStored, file.HighBit = bits, bits, bits - 1
    file.PixelRepresentation = int(stored.dtype.kind == "i")
    file.PixelData = stored.tobytes() + bytes(stored.nbytes % 2)
    file["PixelData"].VR = "OW" if bits == 16 else "OB"
    for name, value in tags.items():
        if value is None:
            delattr(file, name)
        else:
            setattr(file, name, value)
    return file


def dicom(stored: npt.NDArray[Any], **tags: Any) -> bytes:
    return saved(dataset(stored, **tags))


def saved(file: Dataset) -> bytes:
    out = BytesIO()
    file.save_as(out)
    return out.getvalue()


def compressed(file: FileDataset, frame: bytes, syntax: UID) -> bytes:
    """The same film with this compressed frame in place of its pixels."""
    file.file_meta.TransferSyntaxUID = syntax
    file.PixelData = encapsulate([frame + bytes(len(frame) % 2)])
    file["PixelData"].VR = "OB"
    return saved(file)


def catalogue(archive: Path, **settings: object) -> str:
    """The catalogue of an archive labelled by its folders, beside it."""
    out = str(archive.parent / "catalog")
    build_catalog(str(archive), out, CatalogSettings(labels="path", patients="unknown", **settings))  # type: ignore[arg-type]
    return out
