"""A night over what a hospital's bucket really holds, its driver killed half-way: every file ends with its own reason.

JPEG, PNG, DICOM of nine transfer syntaxes, containers, rubbish, other objects of a PACS, a file of 3 GB (sparse, so
it costs nothing) and one that the store keeps locked.
"""

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import FileDataset

from pipelines.ingest.patients import SECRET_VARIABLE
from pipelines.storage import open_store
from pipelines.table.query import ask
from tests.chaos.fault_proxy import Faults, faulty
from tests.nights import Night
from tests.pipelines.bundles import save_untrained
from tests.pipelines.decoding.films import compressed, dataset, encode, saved
from tests.pipelines.decoding.frames import LOSSLESS
from tests.pipelines.ingest.test_containers import tarred, zipped
from tests.servers import clean_environment, rclone_server

pytestmark = pytest.mark.chaos

SIDE = 160
PLAIN = {"JPEG": 10, "PNG": 6}
HUGE = 3 << 30
HEADER = {
    "site": "north", "view": "PA", "modality": "DX", "body_part": "CHEST", "manufacturer": "Agfa",
    "device_model": "DX-D 600", "age_years": 45, "sex": "F", "presentation_intent": "FOR PRESENTATION",
    "study_date": "2024-02-29",
}  # fmt: skip
"""Columns of a film of the north hospital; of other files null but for the site."""
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "report": ({"SOPClassUID": uid.BasicTextSRStorage}, "not_image"),
    "letter": ({"SOPClassUID": uid.EncapsulatedPDFStorage}, "not_image"),
    "state": ({"SOPClassUID": uid.GrayscaleSoftcopyPresentationStateStorage}, "not_image"),
    "ct": ({"SOPClassUID": uid.CTImageStorage}, "not_xray"),
    "raw": ({"PresentationIntentType": "FOR PROCESSING"}, "for_processing"),
    "hip": ({"BodyPartExamined": "HIP"}, "not_chest"),
    "lateral": ({"ViewPosition": "LL"}, "not_frontal"),
    "video": ({"NumberOfFrames": "30"}, "unsupported"),
}
"""Objects of a PACS that are no film for the model: what makes them so, and the reason."""


def film(rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.uint8]]:
    blots = np.kron(rng.integers(0, 255, (8, 8)), np.ones((SIDE // 8, SIDE // 8)))
    return blots.astype(np.uint8)


def dicom(rng: np.random.Generator, **tags: Any) -> FileDataset:
    known: dict[str, Any] = {
        "PatientSex": "F", "PatientAge": "045Y", "Manufacturer": "Agfa", "ManufacturerModelName": "DX-D 600",
        "PresentationIntentType": "FOR PRESENTATION",
    }  # fmt: skip
    window = {"BitsStored": 12, "HighBit": 11, "WindowCenter": 2048, "WindowWidth": 4096}
    return dataset(film(rng).astype(np.uint16) * 16, **{**known, **window, **tags})


def archive() -> tuple[dict[str, bytes], dict[str, str]]:
    """Files by key, and the reason of every scan by key; an empty one for those that are scored."""
    rng = np.random.default_rng(3)
    files: dict[str, bytes] = {}
    reasons: dict[str, str] = {}

    def add(key: str, data: bytes, reason: str = "") -> None:
        files[key], reasons[key] = data, reason

    for form, count in PLAIN.items():
        for number in range(count):
            add(f"south/{number}.{form.lower()}", encode(film(rng), form))
    for name, data in of_all_syntaxes(rng).items():
        add(f"north/{name}.dcm", data)
    for name, (tags, reason) in OTHERS.items():
        add(f"north/{name}.dcm", saved(dicom(rng, **tags)), reason)
    for packer, key in ((zipped, "north/batch.zip"), (tarred, "south/batch.tar.gz")):
        members = {"a.dcm": saved(dicom(rng)), "b.jpeg": encode(film(rng), "jpeg"), "c.dcm": saved(dicom(rng))[:3000]}
        files[key] = packer(members) if packer is zipped else tarred(members, "w:gz")
        reasons |= {f"{key}!/{name}": "truncated" if name == "c.dcm" else "" for name in members}
    jpeg = encode(film(rng), "jpeg")
    add("rubbish/empty.jpeg", b"", "empty_file")
    add("rubbish/letter.jpeg", b"Dear colleague, the film is on the server.\n" * 40, "unknown_format")
    add("rubbish/cut.jpeg", jpeg[: len(jpeg) // 2], "truncated")
    add("rubbish/blank.png", encode(np.full((SIDE, SIDE), 90, np.uint8), "png"), "blank")
    add("locked/film.jpeg", jpeg, "access_denied")
    files["rubbish/Thumbs.db"] = files["rubbish/notes.txt"] = b"no scan"
    return files, reasons


def of_all_syntaxes(rng: np.random.Generator) -> dict[str, bytes]:
    files = {}
    for name, syntax in {
        "implicit": uid.ImplicitVRLittleEndian,
        "explicit": uid.ExplicitVRLittleEndian,
        "deflated": uid.DeflatedExplicitVRLittleEndian,
    }.items():
        file = dicom(rng)
        file.file_meta.TransferSyntaxUID = syntax
        files[name] = saved(file)
    run_length = dicom(rng)
    run_length.compress(uid.RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    files["rle"] = saved(run_length)
    for name, (syntax, code) in LOSSLESS.items():
        file = dicom(rng)
        files[name] = compressed(file, code(np.frombuffer(file.PixelData, "<u2").reshape(SIDE, SIDE)), syntax)
    return files


@contextlib.contextmanager
def mixed_night(rayscan: str, folder: Path, files: dict[str, bytes], faults: Faults) -> Iterator[Night]:
    """The archive on a real S3 server; the command reaches it through the faulty front, the test directly."""
    bucket = folder / "served" / "hospital"
    for key, data in files.items():
        path = bucket / "archive" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with (bucket / "archive" / "north" / "huge.dcm").open("wb") as huge:
        os.truncate(huge.fileno(), HUGE)
    save_untrained(folder / "bundle")
    with (
        rclone_server(folder / "served", "--etag-hash=xxh3") as server,
        faulty(server, faults) as front,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in server.environment().items():
            patch.setenv(name, value)
        # The server hashes what it lists, once: the 3 GB take it longer than a client waits on a busy machine.
        sum(len(chunk) for chunk in open_store("s3://hospital/archive").list(""))
        environment = {**clean_environment(), **front.environment(), "RAYSCAN_CACHE": str(folder / "cache")}
        yield Night(
            rayscan=rayscan,
            archive=open_store("s3://hospital/archive"),
            bundle=str(folder / "bundle"),
            scores=open_store("s3://hospital/scores"),
            films=len(files),
            environment={**environment, SECRET_VARIABLE: "a secret that stays the same"},
            options=("--shard-size", "4", "--site-from", "1", "--json"),
        )


def test_every_file_of_a_mixed_night_ends_with_its_own_reason_after_a_kill(
    rayscan_command: str, tmp_path: Path
) -> None:
    files, expected = archive()
    expected["north/huge.dcm"] = "too_large"
    faults = Faults(forbidden=("/hospital/archive/locked/", 403, "AccessDenied"))
    with mixed_night(rayscan_command, tmp_path, files, faults) as night:
        started = time.monotonic()
        assert 3 <= night.kill_driver(after=3) < len(expected) // 4
        killed = time.monotonic()
        done = night.run()
        ended = time.monotonic()
        assert done.returncode == 3, done.stderr
        assert "1 single scans could not be read (access_denied)" in done.stderr
        resumed, again = json.loads(done.stdout)
        assert resumed["planned"] == sum(resumed["counts"].values()) == len(expected)
        assert resumed["resumed_shards"] < resumed["shards"]
        assert (again["planned"], again["counts"]["failed"]) == (1, 1), "the locked one is tried again at once"
        assert night.rows() == {"rows": len(expected) + 1, "scans": len(expected), "runs": 2}

        rows = ask(night.scores.root, "SELECT * FROM latest").to_pylist()
        assert len(rows) == len(expected)
        found = {row["uri"].removeprefix(f"{night.archive.root}/"): row for row in rows}
        assert {key: row["reason"] or "" for key, row in found.items()} == expected
        told = Counter((row["status"], row["reason"]) for row in rows)
        for key, row in found.items():
            assert row["site"] == key.partition("/")[0]
            assert (row["probability"] is not None) == (row["status"] == "scored")
            if row["status"] == "scored" and key.endswith(".dcm"):
                assert {name: str(row[name]) for name in HEADER} == {
                    **{name: str(value) for name, value in HEADER.items()},
                    "site": row["site"],
                }, key
                assert len(row["patient_key"]) == 64

        faults.forbidden = None
        done = night.run()
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[-1]["counts"]["scored"] == 1, "the film that was locked, and no other"
    print(f"\nkilled after {killed - started:.0f} s, finished in {ended - killed:.0f} s more; {len(expected)} scans:")
    for (status, reason), count in sorted(told.items(), key=lambda item: (-item[1], str(item[0]))):
        print(f"{status:12}{reason or '':16}{count:4}")
