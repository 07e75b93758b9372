"""What kind of object a DICOM file holds, by its SOP class (PS3.4, annex B.5): a film, or something else.

A PACS export holds reports, presentation states and other modalities beside the films. They are told by their header,
before anything is decoded, and rejected with what they are.
"""

from typing import Final

from pydicom import uid

from pipelines.contracts import Reason
from pipelines.errors import RejectedScanError

_FILMS: Final = {
    uid.ComputedRadiographyImageStorage,
    uid.DigitalXRayImageStorageForPresentation,
    uid.DigitalXRayImageStorageForProcessing,  # refused by its presentation intent
    uid.SecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    uid.MultiFrameTrueColorSecondaryCaptureImageStorage,
}
_STORAGE: Final = "1.2.840.10008.5.1.4.1.1."
_WITHOUT_IMAGE: Final = tuple(f"{_STORAGE}{group}" for group in ("9.", "11.", "66", "67", "68.", "78.", "79.", "80.",
                                                                 "88.", "90.", "104.", "481."))  # fmt: skip
"""Waveforms, presentation states, raw data, registrations, measurements, structured reports, documents, therapy."""


def refuse_other_objects(sop_class: str | None, intent: str | None) -> None:
    """Raise `RejectedScanError` for what is no film to read: `not_image`, `not_xray` or `for_processing`.

    A private or unknown class says nothing; the pixels will. `intent` is PresentationIntentType (PS3.3 C.8.11.1.1.1):
    FOR PROCESSING is the detector's raw signal, which no reader is ever shown.
    """
    if sop_class and sop_class.startswith(_STORAGE) and sop_class not in _FILMS:
        name = uid.UID(sop_class).name
        known = "" if name == sop_class else name.removesuffix(" Storage")
        if sop_class.startswith(_WITHOUT_IMAGE):
            raise RejectedScanError(Reason.NOT_IMAGE, known)
        if known:
            raise RejectedScanError(Reason.NOT_XRAY, known)
    if intent == "FOR PROCESSING" or (intent is None and sop_class == uid.DigitalXRayImageStorageForProcessing):
        raise RejectedScanError(Reason.FOR_PROCESSING)
