"""Films as files: JPEG, PNG and DICOM bytes, and files that are broken on purpose."""

import hashlib
import struct
import zlib
from io import BytesIO
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.phantom.render import film

if TYPE_CHECKING:  # films are drawn on machines without pydicom, too
    from pydicom.dataset import FileDataset

Format = Literal["jpeg", "png", "dicom"]
Bits = Literal[8, 12]
Photometric = Literal["MONOCHROME1", "MONOCHROME2"]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_INTERCEPT = -1024
"""Rescale intercept of 12-bit films. Their window is in rescaled values, so a reader must rescale first."""


def encode(pixels: npt.NDArray[np.uint8], form: Literal["jpeg", "png"]) -> bytes:
    """Grey levels uint8 [H, W] as grey JPEG of quality 90 or as 8-bit PNG."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, form, **({"quality": 90} if form == "jpeg" else {}))
    return file.getvalue()


def dicom_bytes(
    pixels: npt.NDArray[np.uint8],
    *,
    bits: Bits = 12,
    photometric: Photometric = "MONOCHROME2",
    modality: str = "DX",
    body_part: str = "CHEST",
    view: str = "PA",
    patient_id: str = "PHANTOM-0000",
    study_date: str = "20240101",
) -> bytes:
    """Grey levels uint8 [H, W], dense = bright, as a DICOM file that shows them so.

    The values are stretched to `bits` and inverted for MONOCHROME1; rescale and window lead back to `pixels`. The
    header is explicit VR little endian, uncompressed. Name, birth date and accession number are there, and fake, so a
    test can show that a reader does not repeat them. `study_date` is YYYYMMDD.
    """
    from pydicom.dataset import FileDataset, FileMetaDataset  # noqa: PLC0415 (see above)
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian  # noqa: PLC0415

    top = 2**bits - 1
    stored = np.round(pixels.astype(np.float64) * (top / 255))
    if photometric == "MONOCHROME1":
        stored = top - stored
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    file.Modality = modality
    file.BodyPartExamined = body_part
    file.ViewPosition = view
    file.PresentationIntentType = "FOR PRESENTATION"
    _set_identity(file, pixels, patient_id, study_date)
    _set_pixels(file, stored, bits, photometric)
    out = BytesIO()
    file.save_as(out, enforce_file_format=True)
    return out.getvalue()


def _set_identity(file: "FileDataset", pixels: npt.NDArray[np.uint8], patient_id: str, study_date: str) -> None:
    """Patient, study and unique identifiers.

    The same film gets the same identifiers, so that an archive of one seed has the same bytes wherever it is made.
    """
    from pydicom.uid import DigitalXRayImageStorageForPresentation, generate_uid  # noqa: PLC0415 (see above)

    words = [patient_id, study_date, hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest()]
    file.StudyInstanceUID = generate_uid(entropy_srcs=["study", *words])
    file.SeriesInstanceUID = generate_uid(entropy_srcs=["series", *words])
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["image", *words])
    file.SOPClassUID = DigitalXRayImageStorageForPresentation
    file.PatientID = patient_id
    file.PatientName = f"Phantom^{patient_id}"
    file.PatientBirthDate = "19010203"
    file.PatientSex = "O"
    file.AccessionNumber = f"ACC{patient_id[-8:]}"
    file.StudyDate = file.ContentDate = study_date
    file.StudyTime = file.ContentTime = "120000"


def _set_pixels(file: "FileDataset", stored: npt.NDArray[np.float64], bits: Bits, photometric: Photometric) -> None:
    """Stored values [H, W], and the rescale and window that lead from them to the display."""
    top = 2**bits - 1
    intercept = _INTERCEPT if bits == 12 else 0
    file.Rows, file.Columns = stored.shape
    file.SamplesPerPixel = 1
    file.PhotometricInterpretation = photometric
    file.PixelRepresentation = 0
    file.BitsAllocated = 8 if bits == 8 else 16
    file.BitsStored = bits
    file.HighBit = bits - 1
    file.RescaleSlope = 1
    file.RescaleIntercept = intercept
    file.RescaleType = "US"
    # The linear window of PS3.3 C.11.2.1.2.1 that maps 0..top onto the full range of the display.
    file.WindowCenter = (top + 1) / 2 + intercept
    file.WindowWidth = top + 1
    data = stored.astype("u1" if bits == 8 else "<u2").tobytes()
    file.PixelData = data + bytes(len(data) % 2)
    file["PixelData"].VR = "OB" if bits == 8 else "OW"


def broken_files(seed: int) -> dict[str, bytes]:
    """Broken files as real hospital archives hold them, by a name that says what is wrong with each.

    All are unreadable except `blank.png`, which is readable and shows nothing.
    """
    pixels, _ = film(np.random.default_rng(seed), opacity=False, size=192)
    jpeg, png, dicom = encode(pixels, "jpeg"), encode(pixels, "png"), dicom_bytes(pixels)
    return {
        "empty.jpeg": b"",
        "truncated.jpeg": jpeg[: len(jpeg) // 2],
        "truncated.png": png[: len(png) // 2],
        "truncated.dcm": dicom[: len(dicom) // 2],
        "text_renamed.jpeg": b"This film was moved to the new archive.\n" * 8,
        "zero_size.png": _png_of_no_size(),
        "wrong_magic.png": b"\x00" * 8 + png[8:],
        "blank.png": encode(np.full((192, 192), 128, np.uint8), "png"),
    }


def _png_of_no_size() -> bytes:
    """A well-formed PNG whose header says 0 x 0 pixels, 8 bit grey."""
    header = struct.pack(">IIBBBBB", 0, 0, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return _PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
