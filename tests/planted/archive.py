"""An archive with something planted in every place of its files where patient data can stand; its names hold nothing.

Good films, so that every verb has work; a film with every element that DICOM knows; films each of which has nonsense in
one element that rayscan reads; files of the kinds that are refused, and broken ones, for the paths of errors.
"""

import csv
import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom import uid
from pydicom.datadict import DicomDictionary, dictionary_VR
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag

from pipelines.decoding.dicom_file import _TAGS
from pipelines.phantom import film
from tests.pipelines.decoding.films import compressed, dataset, encode, saved
from tests.planted.raw_dicom import RawFile
from tests.planted.words import Planted

SIDE: Final = 96
_TEXT: Final = {"PN", "LO", "SH", "LT", "ST", "UT", "UC", "UR", "AE", "CS", "DA", "TM", "DT", "AS", "IS", "DS", "UI"}
_NUMBERS: Final = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit",
                   "PixelRepresentation", "PlanarConfiguration", "PixelPaddingValue", "RescaleIntercept",
                   "WindowCenter")  # fmt: skip
INSTITUTION: Final = "InstitutionName"
"""The one place that a user can ask for, with `--site-from institution`."""
FILM_UIDS: Final = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


def good_films(planted: Planted, count: int) -> dict[str, bytes]:
    """Films that are scored, each of a patient of its own: DICOM of two encodings, JPEG and PNG by turns."""
    files = {}
    for number, levels in enumerate(_pixels(count)):
        name = f"good-{number:02d}"
        match number % 4:
            case 0:
                files[f"{name}.dcm"] = saved(_person(levels, name, planted))
            case 1:
                files[f"{name}.dcm"] = _compressed(_person(levels, name, planted), levels, planted, name)
            case 2:
                files[f"{name}.jpeg"] = _jpeg(levels, planted, name)
            case _:
                files[f"{name}.png"] = _png(levels, planted, name)
    return files


def odd_files(planted: Planted) -> dict[str, bytes]:
    """Everything else."""
    (levels,) = _pixels(1)

    def fresh(name: str) -> RawFile:
        return RawFile.of(_person(levels, name, planted))

    everything = _everything(fresh("everything"), planted)
    whole = everything.data()
    files = {
        "everything.dcm": whole,
        "everything-implicit.dcm": everything.data(uid.ImplicitVRLittleEndian),
        "everything-deflated.dcm": everything.data(uid.DeflatedExplicitVRLittleEndian),
        "everything-big-endian.dcm": everything.data(uid.ExplicitVRBigEndian),
        "everything-bare.dcm": whole[132:],
        "around.dcm": _around(fresh("around"), planted),
        **_nonsense(fresh, planted),
        **_other_objects(fresh, planted),
        **_odd_syntaxes(fresh, planted),
        **_japanese(fresh, planted),
    }
    jpeg, png = _jpeg(levels, planted, "cut"), _png(levels, planted, "cut")
    for kind, data in (("dcm", whole), ("jpeg", jpeg), ("png", png)):
        files |= {f"cut-{part}.{kind}": data[: len(data) * part // 12] for part in range(1, 12)}
        files |= {f"spoilt-{part}.{kind}": _spoilt(data, part) for part in range(8)}
    return files | _containers(fresh("member").data(), planted)


def labels_csv(planted: Planted, names: list[str]) -> bytes:
    """Labels of the good films, with a patient's id, and his name in a column that nobody asked for."""
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(("path", "label", "patient_id", "site", "name", planted.word("title of a column of the labels")))
    for number, name in enumerate(names):
        who = planted.person(f"patient_id of the labels, {name}"), "north", planted.word(f"name in the labels, {name}")
        rows.writerow((name, ("NORMAL", "PNEUMONIA")[number // 4 % 2], *who))
    return text.getvalue().encode()


def _pixels(count: int) -> Iterator[npt.NDArray[np.uint8]]:
    rng = np.random.default_rng(5)
    for number in range(count):
        yield film(rng, opacity=number // 4 % 2 == 1, size=SIDE)[0]


def _person(levels: npt.NDArray[np.uint8], name: str, planted: Planted) -> FileDataset:
    """A film as a modality sends it: all that names the patient is there and well formed."""

    def word(keyword: str) -> str:
        return planted.word(f"{keyword} of {name}")

    file = dataset(levels.astype(np.uint16) * 16, BitsStored=12, HighBit=11, WindowCenter=2048, WindowWidth=4096)
    file.PatientID, file.IssuerOfPatientID = planted.person(f"PatientID of {name}"), word("IssuerOfPatientID")
    file.PatientName = f"{word('family name')}^{word('given name')}"
    file.PatientBirthDate = planted.day(f"PatientBirthDate of {name}")
    file.PatientBirthTime, file.PatientSex, file.PatientAge = "010203", "F", "045Y"
    for keyword in FILM_UIDS:
        setattr(file, keyword, planted.uid(f"{keyword} of {name}"))
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID
    file.StudyDate, file.Manufacturer, file.ManufacturerModelName = "20240229", "Agfa", "DX-D 600"
    for keyword in ("AccessionNumber", "StudyID", "ReferringPhysicianName", "OperatorsName", "InstitutionAddress",
                    "PatientAddress", "PatientTelephoneNumbers", "StudyDescription", "ImageComments"):  # fmt: skip
        setattr(file, keyword, word(keyword))
    file.InstitutionName = planted.word(INSTITUTION)
    return file


def _everything(file: RawFile, planted: Planted) -> RawFile:
    """The film with a text in every element of DICOM's dictionary that rayscan does not read, and in private ones."""
    for number, (vr, _, _, _, keyword) in DicomDictionary.items():
        tag = Tag(number)
        if tag.group in {0x0000, 0x0002, 0x7FE0, 0xFFFE} or keyword in _TAGS or tag in file.body:
            continue
        if vr == "SQ":
            file.put(tag, "SQ", [_item(keyword, planted)])
        elif vr in _TEXT:
            file.put(tag, vr, planted.word(keyword or f"{tag}"))
    file.body.pop(Tag("SpecificCharacterSet"))
    for group in (0x5000, 0x6000):  # a curve and an overlay
        file.put(Tag(group, 0x0022), "LO", planted.word(f"description in {group:x}"))
        file.put(Tag(group, 0x3000), "OW", planted.word(f"data in {group:x}"))
    file.put(Tag(0x0009, 0x0010), "LO", planted.word("private creator"))
    file.put(Tag(0x0009, 0x1001), "LO", planted.word("private element"))
    return file.put(Tag(0x0009, 0x1002), "SQ", [_item("private sequence", planted)])


def _item(keyword: str, planted: Planted) -> RawFile:
    """An item of a sequence, with a sequence in it."""
    inner = RawFile({}, {}).put("AccessionNumber", "SH", planted.word(f"accession number deep in {keyword}"))
    item = RawFile({}, {}).put("PatientID", "LO", planted.person(f"id in {keyword}"))
    item.put("PatientName", "PN", planted.word(f"name in {keyword}"))
    return item.put("RequestAttributesSequence", "SQ", [inner])


def _around(file: RawFile, planted: Planted) -> bytes:
    """Text in the preamble, the meta information, the padding within and behind the pixels, and behind the file."""
    file.preamble = planted.word("preamble").encode().ljust(128, b"\0")
    for keyword in ("SourceApplicationEntityTitle", "SendingApplicationEntityTitle", "ImplementationVersionName"):
        file.put(keyword, "AE", planted.word(keyword))
    for keyword in ("ImplementationClassUID", "PrivateInformationCreatorUID"):
        file.put(keyword, "UI", planted.uid(keyword))
    file.put("PrivateInformation", "OB", planted.word("PrivateInformation"))
    pixels = file.body[Tag("PixelData")][1]
    file.put("PixelData", "OW", pixels + planted.word("behind the pixels").encode())
    file.put("DataSetTrailingPadding", "OB", planted.word("DataSetTrailingPadding"))
    return file.data() + planted.word("behind the file").encode()


def _nonsense(fresh: Callable[[str], RawFile], planted: Planted) -> dict[str, bytes]:
    """For each element that rayscan reads a film with a word, for some one with a number, where its value belongs."""
    files = {}
    for keyword in _TAGS:
        vr = dictionary_VR(keyword).partition(" ")[0]  # "US or SS" is US
        for kind, written in (("text", "LO"), ("own", vr)):
            name = f"nonsense-{keyword}-{kind}"
            word = keyword if keyword == INSTITUTION else f"{keyword} as {kind}"
            value = [_coded(planted.word(word))] if written == "SQ" else planted.word(word)
            files[f"{name}.dcm"] = fresh(name).put(keyword, written, value).data()
    for keyword in _NUMBERS:
        name = f"number-{keyword}"
        files[f"{name}.dcm"] = fresh(name).put(keyword, "IS", planted.number(keyword)).data()
    for side, other in (("Rows", "Columns"), ("Columns", "Rows")):
        long = fresh(f"line-{side}").put(side, "IS", planted.number(f"{side} of a line"))
        files[f"line-{side}.dcm"] = long.put(other, "US", b"\1\0").data()
    return files


def _coded(word: str) -> RawFile:
    item = RawFile({}, {})
    for keyword in ("CodeValue", "CodeMeaning", "LUTExplanation", "ModalityLUTType", "LUTDescriptor", "LUTData"):
        item.put(keyword, "LO", word)
    return item


def _other_objects(fresh: Callable[[str], RawFile], planted: Planted) -> dict[str, bytes]:
    """A report, a letter as PDF, a presentation state, a CT slice, a directory, and classes that nobody knows."""
    classes = {
        "report": uid.BasicTextSRStorage,
        "letter": uid.EncapsulatedPDFStorage,
        "state": uid.GrayscaleSoftcopyPresentationStateStorage,
        "ct": uid.CTImageStorage,
        "directory": uid.MediaStorageDirectoryStorage,
        "unknown": planted.uid("a private SOP class"),
        "almost": f"1.2.840.10008.5.1.4.1.1.{planted.word('end of a SOP class')}",
        "named": f"1.2.840.10008.5.1.4.1.1.88.{planted.word('name of a SOP class')} Storage",
        "worded": planted.word("SOP class"),
    }
    files = {}
    for name, kind in classes.items():
        content = RawFile({}, {}).put("TextValue", "UT", planted.word(f"TextValue of {name}"))
        content.put("PersonName", "PN", planted.word(f"PersonName of {name}"))
        file = fresh(name).put("SOPClassUID", "UI", kind).put("MediaStorageSOPClassUID", "UI", kind)
        file.put("ContentSequence", "SQ", [content]).put("DocumentTitle", "ST", planted.word(f"title of {name}"))
        file.put("EncapsulatedDocument", "OB", f"%PDF-1.4 {planted.word(f'PDF of {name}')} ")
        files[f"{name}.dcm"] = (file if name == "unknown" else file.drop("PixelData")).data()
    return files


def _odd_syntaxes(fresh: Callable[[str], RawFile], planted: Planted) -> dict[str, bytes]:
    """Films of transfer syntaxes that are unknown, not supported, or not those of their pixels."""
    syntaxes = {
        "video": uid.MPEG2MPML,
        "private": planted.uid("a private transfer syntax"),
        "worded": planted.word("transfer syntax"),
        "nearly": f"1.2.840.10008.1.2.4.{planted.word('end of a transfer syntax')}",
    }
    files = {f"syntax-{name}.dcm": fresh(f"syntax-{name}").data(named=syntax) for name, syntax in syntaxes.items()}
    for kind in (uid.JPEGBaseline8Bit, uid.JPEG2000Lossless, uid.RLELossless, uid.JPEGLSLossless, uid.HTJ2K):
        name = f"frame-{kind[-3:]}"
        frame = encapsulate([planted.word(f"compressed frame of {kind.name}").encode() * 8])
        files[f"{name}.dcm"] = fresh(name).put("PixelData", "OB", frame).data(named=kind)
    return files


def _japanese(fresh: Callable[[str], RawFile], planted: Planted) -> dict[str, bytes]:
    """Ideograms as name and id, in Unicode, GB 18030 and JIS X 0212, and with a charset that is nonsense."""
    charsets = {"ISO_IR 192": "utf-8", "GB18030": "gb18030", r"\ISO 2022 IR 159": "iso2022_jp_2"}
    files = {}
    for number, (charset, encoding) in enumerate([*charsets.items(), (planted.word("charset"), "utf-8")]):
        file = fresh(f"japanese-{number}").put("SpecificCharacterSet", "CS", charset)
        name, latin = planted.ideograms(f"ideograms {number}", encoding), planted.word(f"alphabetic name {number}")
        file.put("PatientName", "PN", f"{latin}={name}={name}".encode(encoding))
        for keyword in ("PatientID", "InstitutionName", "PatientComments", "BodyPartExamined"):
            file.put(keyword, "LO", name.encode(encoding))
        files[f"japanese-{number}.dcm"] = file.data()
    return files


def _compressed(file: FileDataset, levels: npt.NDArray[np.uint8], planted: Planted, name: str) -> bytes:
    file.BitsAllocated, file.BitsStored, file.HighBit, file.WindowCenter, file.WindowWidth = 8, 8, 7, 128, 256
    return compressed(file, _jpeg(levels, planted, f"frame of {name}"), uid.JPEGBaseline8Bit)


def _jpeg(levels: npt.NDArray[np.uint8], planted: Planted, name: str) -> bytes:
    """EXIF, a comment, XMP, IPTC and bytes behind the end."""
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = planted.word(f"EXIF description of {name}"), planted.word(f"EXIF artist of {name}")
    comment = planted.word(f"comment of {name}").encode()
    data = encode(levels, "jpeg", exif=exif, comment=comment, quality=90)
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x>" + planted.word(f"XMP of {name}").encode() + b"</x>"
    iptc = b"Photoshop 3.0\x008BIM\x04\x04" + planted.word(f"IPTC of {name}").encode()
    blocks = b"".join(
        b"\xff" + bytes([marker]) + struct.pack(">H", 2 + len(block)) + block
        for marker, block in ((0xE1, xmp), (0xED, iptc))
    )
    assert imagecodecs.jpeg8_decode(data).shape == levels.shape
    return data[:2] + blocks + data[2:] + (b"" if name.startswith("frame") else planted.word(f"after {name}").encode())


def _png(levels: npt.NDArray[np.uint8], planted: Planted, name: str) -> bytes:
    """Text of all three kinds, EXIF, the name of a profile, and bytes behind the end."""
    info, exif = PngInfo(), Image.Exif()
    info.add_text("Author", planted.word(f"tEXt of {name}"))
    info.add_text("Comment", planted.word(f"zTXt of {name}"), zip=True)
    info.add_itxt("Title", planted.word(f"iTXt of {name}"), lang="en", tkey=planted.word(f"iTXt key of {name}"))
    profile = planted.word(f"iCCP of {name}").encode() + b"\0\0" + zlib.compress(planted.word("profile").encode())
    info.add(b"iCCP", profile)
    exif[0x010E] = planted.word(f"PNG EXIF of {name}")
    return encode(levels, "png", pnginfo=info, exif=exif) + planted.word(f"after png {name}").encode()


def _spoilt(data: bytes, part: int) -> bytes:
    """Sixteen bytes of the file overwritten."""
    place = len(data) * part // 8 + 140 * (part == 0)
    return data[:place] + b"\xff" * 16 + data[place + 16 :]


def _containers(member: bytes, planted: Planted) -> dict[str, bytes]:
    """The film in a zip, a tar and a gzip whose comments, owners and headers hold something."""
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = planted.word("comment of a zip").encode()
        for name, data in (("in-zip.dcm", member), ("cut-in-zip.dcm", member[:900])):
            entry = zipfile.ZipInfo(name)
            entry.comment = planted.word(f"comment of {name}").encode()
            archive.writestr(entry, data)
    with tarfile.open(fileobj=tarred, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        header = tarfile.TarInfo("in-tar.dcm")
        header.size, header.uname, header.gname = len(member), planted.word("owner"), planted.word("group")
        header.pax_headers = {"comment": planted.word("comment of a tar")}
        tar.addfile(header, io.BytesIO(member))
    named = io.BytesIO()
    with gzip.GzipFile(planted.word("name in a gzip"), "wb", fileobj=named) as out:
        out.write(member)
    return {"batch.zip": zipped.getvalue(), "batch.tar.gz": tarred.getvalue(), "single.dcm.gz": named.getvalue()}


def written(folder: Path, files: dict[str, bytes]) -> Path:
    """The files in the folder."""
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder
