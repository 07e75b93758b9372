"""The words by which DICOM headers say what a film shows.

Hospitals write them in many languages and run them together (TORACE, PECHO, CHESTPA): a word that is on no list says
nothing, and the pixels decide.
"""

from typing import Final

MODALITIES: Final = frozenset({"CR", "DX", "DR", "RG", "OT"})
"""DICOM PS3.3 C.7.3.1.1.1: computed and digital radiography, radiographic film; OT is what film digitisers write."""

OTHER_PARTS: Final = frozenset(
    {"ABDOMEN", "ABD", "ADRENAL", "ANKLE", "AORTA", "ARM", "BLADDER", "BRAIN", "BREAST", "BUTTOCK", "CALCANEUS", "CALF"}
    | {"CAROTID", "CEREBELLUM", "CERVIX", "CHEEK", "CLAVICLE", "COCCYX", "COLON", "CSPINE", "CTSPINE", "DUODENUM"}
    | {"EAR", "ELBOW", "EXTREMITY", "EYE", "EYELID", "FACE", "FEMUR", "FINGER", "FOOT", "FOREARM", "GALLBLADDER"}
    | {"HAND", "HEAD", "HIP", "HUMERUS", "IAC", "ILEUM", "ILIUM", "JAW", "JEJUNUM", "KIDNEY", "KNEE", "LARYNX", "LEG"}
    | {"LIVER", "LSPINE", "LSSPINE", "MANDIBLE", "MAXILLA", "MOUTH", "NECK", "NOSE", "ORBIT", "ORBITS", "OVARY"}
    | {"PANCREAS", "PAROTID", "PATELLA", "PELVIS", "PENIS", "PHARYNX", "PROSTATE", "RADIUS", "RECTUM", "RIB", "RIBS"}
    | {"SACRUM", "SCALP", "SCAPULA", "SCLERA", "SCROTUM", "SELLA", "SHOULDER", "SINUS", "SINUSES", "SKULL", "SPINE"}
    | {"SPLEEN", "SSPINE", "STOMACH", "TESTIS", "THIGH", "THUMB", "THYMUS", "THYROID", "TIBIA", "TLSPINE", "TMJ", "TOE"}
    | {"TONGUE", "TOOTH", "TSPINE", "ULNA", "URETER", "URETHRA", "UTERUS", "VAGINA", "VULVA", "WHOLEBODY", "WRIST"}
    | {"ZYGOMA", "TEETH", "FIBULA", "HEEL", "BODY", "KUB", "JOINT"}
)
"""Terms of DICOM PS3.16, annex L (Body Part Examined), that are no chest. Beside the chest they make it another film,
too: thoracic spine, a newborn's chest and abdomen in one."""

NOT_FRONTAL: Final = frozenset(
    {"LATERAL", "LAT", "LL", "RL", "LLAT", "RLAT", "LLD", "RLD", "DECUB", "DECUBITUS", "AXIAL"}
    | {"OBLIQUE", "OBL", "LAO", "RAO", "LPO", "RPO", "LLO", "RLO"}
)
"""Words of the DICOM View Position (0018,5101) that say lateral, oblique or lying on the side."""

NOT_FRONTAL_CODES: Final = frozenset(
    {"399067008", "R-102CD"}  # lateral
    | {"399198007", "R-10232", "399173006", "R-10236"}  # right and left lateral
    | {"399352003", "R-10228", "399260004", "R-10224", "399368009", "R-10226"}  # lateral to medial and back, oblique
    | {"399182000", "R-102C1", "399184004", "R-10238", "399236003", "R-10234"}  # oblique, left, right
    | {"399135007", "R-10220", "399356000", "R-40985"}  # left and right anterior oblique
    | {"399006002", "R-10212", "399038007", "R-10210"}  # left and right posterior oblique
    | {"399160007", "R-10204", "399059000", "R-10216", "399312000", "R-10208"}  # frontal, PA and AP oblique
    | {"260427002", "R-40783", "260426006", "R-40782"}  # lateral and medial oblique
    | {"399061009", "R-10241"}  # axial
)
"""Codes of DICOM PS3.16, CID 4010 (DX View), for the same: SNOMED CT, and the older form of files before 2019."""
