"""What made a film: modality, maker and model, in words of closed lists.

All three are elements of free text or nearly so, and a field that anyone can type into holds a patient's name sooner or
later. What no list knows is left out: of a model of which one word is known, that word and the numbers stay.
"""

import re
from typing import Final

_MODALITIES: Final = {
    "AR", "AS", "ASMT", "AU", "BDUS", "BI", "BMD", "CD", "CF", "CFM", "CP", "CR", "CS", "CT", "CTPROTOCOL", "DD",
    "DF", "DG", "DM", "DMS", "DOC", "DR", "DS", "DX", "EC", "ECG", "EEG", "EMG", "EOG", "EPS", "ES", "FA", "FID",
    "FS", "GM", "HC", "HD", "IO", "IOL", "IVOCT", "IVUS", "KER", "KO", "LEN", "LP", "LS", "M3D", "MA", "MG",
    "MR", "MS", "NM", "OAM", "OCT", "OP", "OPM", "OPR", "OPT", "OPTBSV", "OPTENF", "OPV", "OSS", "OT", "PA",
    "PLAN", "POS", "PR", "PT", "PX", "REG", "RESP", "RF", "RG", "RTDOSE", "RTIMAGE", "RTINTENT", "RTPLAN",
    "RTRAD", "RTRECORD", "RTSEGANN", "RTSTRUCT", "RWV", "SEG", "SM", "SMR", "SR", "SRF", "ST", "STAIN",
    "TEXTUREMAP", "TG", "US", "VA", "VF", "XA", "XAPROTOCOL", "XC"
}  # fmt: skip
"""Defined terms of DICOM PS3.3 C.7.3.1.1.1, the retired ones too, and DR, which devices write for DX."""

_MAKERS: Final = ("Agfa", "Canon", "Carestream", "DRGEM", "Del Medical", "Fujifilm", "GE", "Hologic", "iRay", "Kodak",
                  "Konica Minolta", "Mindray", "Philips", "Samsung", "Shimadzu", "Siemens", "Toshiba", "United Imaging",
                  "Vieworks", "Villa")  # fmt: skip
_KINDS: Final = {
    "ADC", "AMX", "CL", "COMPACT", "CONSOLE", "CR", "CS", "DETECTOR", "DIGITAL", "DR", "DRX", "DX", "DXD", "FD",
    "FLEX", "FX", "ID", "II", "III", "IMAGE", "IP", "IR", "IV", "MOBILE", "MX", "PLUS", "PORTABLE", "PRO", "PX",
    "RADIOGRAPHY", "READER", "SD", "SYSTEM", "VX", "WALL", "WIRELESS", "WORKSTATION", "XG", "XP", "XR"
}  # fmt: skip
"""Words for kinds of devices, and what stands beside the names of families."""
_FAMILIES: Final = {
    "ACCENT", "AERODR", "ARISTOS", "AXIOM", "BRIVO", "BUCKY", "CAPSULA", "CLASSIC", "COMBIDIAGNOST", "CXDI",
    "DEFINIUM", "DELWORKS", "DIAGNOST", "DIGIEYE", "DIGITALDIAGNOST", "DIRECTRAY", "DIRECTVIEW", "DISCOVERY",
    "DURADIAGNOST", "EDR", "EID", "ELEVA", "ELITE", "EPEX", "ESSENTA", "EVO", "EVOLUTION", "FCR", "FDR",
    "FLUOROSPOT", "FUSION", "GC", "GM", "GU", "GXR", "IMAGEPILOT", "IMPACT", "LUMINOS", "MOBIEYE", "MOBILEDART",
    "MOBILEDIAGNOST", "MOBILETT", "MULTITOM", "MULTIX", "MUX", "OMNERA", "OPTIMA", "PCR", "PRECISION", "PROFECT",
    "PROGRADE", "PROTEUS", "PROXIDIAGNOST", "QXR", "RADEX", "RADREX", "RADSPEED", "REGIUS", "REVOLUTION",
    "SAFIRE", "SILHOUETTE", "SOLO", "SONIALVISION", "THORAVISION", "THORAX", "UDR", "ULTIMAX", "VELOCITY",
    "VISIONARY", "VIVIX", "VXVUE", "WDR", "XGEO", "XPRESS", "YSIO"
}  # fmt: skip
"""Families of devices of these makers."""
_LONGEST_NUMBER: Final = 4
"""Digits: more could be a date of birth."""


def modality(value: str | None) -> str | None:
    """A modality that DICOM knows."""
    return value if value in _MODALITIES else None


def maker(value: str | None) -> str | None:
    """The usual name of a maker."""
    words = re.findall(r"[a-z]+", (value or "").lower())
    run_together = " ".join(words)
    for name in _MAKERS:
        if run_together.startswith(name.lower()) or name.lower() in words:
            return name
    return None


def model(value: str | None) -> str | None:
    """Of a model the words that are known, single letters and short numbers, if one of the words is known."""
    kept = [word for word in (value or "").split() if _is_known(word)]
    named = any(part.upper() in _KINDS | _FAMILIES for word in kept for part in re.findall(r"[A-Za-z]+", word))
    return " ".join(kept) if named else None


def _is_known(word: str) -> bool:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+./-]*", word):
        return False
    letters, numbers = re.findall(r"[A-Za-z]+", word), re.findall(r"\d+", word)
    return all(len(part) == 1 or part.upper() in _KINDS | _FAMILIES for part in letters) and all(
        len(number) <= _LONGEST_NUMBER for number in numbers
    )
