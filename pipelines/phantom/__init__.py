"""Synthetic frontal chest films with known findings, in any encoding, and broken files: for the demo and the tests.

The films make the task meaningful: opacities differ from healthy lung in shape and texture, not in brightness. Exposure
and pose, heart, breast shadows and shading vary more than the disease adds, so a linear model on the pixels stays below
AUC 0.9 on new patients while a small CNN passes 0.97 (`tests/pipelines/test_phantom.py` tests both).

    anatomy.py   a patient's anatomy and findings
    render.py    one film of a patient
    exposure.py  the scanner: grey levels, noise, marker
    files.py     JPEG, PNG and DICOM bytes; broken files
    archive.py   a whole archive, laid out like Kaggle's or like a hospital's
"""

from pipelines.phantom.anatomy import Patient, Subtype, draw_patient
from pipelines.phantom.archive import ArchiveLayout, write_archive
from pipelines.phantom.exposure import FOREIGN_SCANNER, HOME_SCANNER, Scanner
from pipelines.phantom.files import Format, broken_files, dicom_bytes, encode
from pipelines.phantom.render import film, render

__all__ = [
    "FOREIGN_SCANNER",
    "HOME_SCANNER",
    "ArchiveLayout",
    "Format",
    "Patient",
    "Scanner",
    "Subtype",
    "broken_files",
    "dicom_bytes",
    "draw_patient",
    "encode",
    "film",
    "render",
    "write_archive",
]
