"""Labels from folders and from CSV files: what is wrong is named by its line, and quotes nothing of the cell."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import InputError, NotFoundError
from pipelines.ingest.labels import Label, label_from_path, labels_from_file
from pipelines.storage import open_store
from tests.servers import S3Server

ARCHIVE = "s3://films/archive"


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("train/NORMAL/IM-0115-0001.jpeg", Label(label="NORMAL", patient_id="IM-0115", split="train")),
        (
            "test/PNEUMONIA/person1_virus_6_1.jpeg",
            Label(label="PNEUMONIA", subtype="virus", patient_id="person1_virus", split="test"),
        ),
        ("chest_xray/Val/Normal/x.png", Label(label="NORMAL", split="val")),
        # The folder next to the film counts.
        ("NORMAL/train/test/pneumonia/x.png", Label(label="PNEUMONIA", split="test")),
        ("NORMAL.png", Label()),
        ("normally/pneumonias/x.png", Label()),
    ],
)
def test_labels_of_folders(key: str, label: Label) -> None:
    assert label_from_path(key) == label
    assert label_from_path(f"/{key}") == label


def read(folder: Path, text: str | bytes) -> dict[str, Label]:
    path = folder / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return {uri.removeprefix(f"{ARCHIVE}/"): label for uri, label in labels_from_file(str(path), ARCHIVE).items()}


def test_all_columns(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "path,label,subtype,patient_id,split,site,remark\n"
        'a.dcm,PNEUMONIA,virus,MRN-1,train,north,"two\nlines"\n'
        "/sub/b.dcm, normal ,,,,,\n"
        "c.dcm,1\n"
        "d.dcm,,,,,,,,\n",
    )
    assert found == {
        "a.dcm": Label(label="PNEUMONIA", subtype="virus", patient_id="MRN-1", split="train", site="north", line=3),
        "sub/b.dcm": Label(label="NORMAL", line=4),
        "c.dcm": Label(label="PNEUMONIA", line=5),
        "d.dcm": Label(line=6),
    }
    assert "MRN-1" not in repr(found)


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfpath,label\r\na.dcm,0\r\n",
        b"label,path\n0,a.dcm",
        b"uri,label\ns3://films/archive/a.dcm,0\n",
        b"uri,path,label\n,a.dcm,NORMAL\n",
        b"path,label\n\na.dcm,Normal\n\n",
    ],
    ids=["byte order mark", "other order", "uri", "uri or path", "empty lines"],
)
def test_spellings_of_one_file(tmp_path: Path, data: bytes) -> None:
    (found,) = read(tmp_path, data).items()
    assert (found[0], found[1].label) == ("a.dcm", "NORMAL")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.dcm,2\n", "line 2: the label is none of NORMAL, PNEUMONIA, 0, 1"),
        ("path,label\n\na.dcm,1\nb.dcm,ill\n", "line 4: the label is none of"),
        ("path,label,split\na.dcm,1,holdout\n", "line 2: the split is none of train, val, test"),
        ("path,label\na.dcm,1\na.dcm,0\n", "line 3: this film already has a line"),
        ("path,uri,label\na.dcm,,1\n,s3://films/archive/a.dcm,0\n", "line 3: this film already has a line"),
        ("path,label\n,1\n", "line 2: names no film"),
        ("file,label\na.dcm,1\n", "line 1: the header needs the columns `path`"),
        ("path,finding\na.dcm,1\n", "line 1: the header needs the columns `path`"),
        ("", "line 1: the header needs the columns `path`"),
        ('path,label\na.dcm,1\n"b.dcm,1\n' + "c.dcm,0\n" * 20_000, r"line \d+: .*quote"),
    ],
)
def test_a_wrong_file_is_refused_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, text)
    assert f"{tmp_path}/labels.csv" in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text",
    ["a.dcm,1,DOE^JANE\n", "path,label\na.dcm,DOE^JANE\n", "path,label,split\na.dcm,1,DOE^JANE\n"],
    ids=["no header", "label", "split"],
)
def test_a_patient_in_the_wrong_column_is_not_quoted(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    assert "DOE" not in str(caught.value)


def test_what_is_no_text_and_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"labels\.csv: not UTF-8"):
        read(tmp_path, "path,label\nGröße.dcm,1\n".encode("latin-1"))
    with pytest.raises(NotFoundError, match="absent"):
        labels_from_file(str(tmp_path / "absent.csv"), ARCHIVE)


def test_a_file_on_s3(s3: S3Server) -> None:
    root = s3.bucket()
    open_store(root).put("labels.csv", b"path,label\na.dcm,1\n")
    assert list(labels_from_file(f"{root}/labels.csv", f"{root}/archive")) == [f"{root}/archive/a.dcm"]


def test_a_parquet_table(tmp_path: Path) -> None:
    path = str(tmp_path / "labels.parquet")
    rows = [
        {"path": "a.dcm", "label": 1.0, "patient_id": 4711.0, "split": "train", "other": [1]},
        {"path": "/b.dcm", "label": 0.0, "patient_id": None, "split": None, "other": []},
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert labels_from_file(path, ARCHIVE) == {
        f"{ARCHIVE}/a.dcm": Label(label="PNEUMONIA", patient_id="4711", split="train", line=1),
        f"{ARCHIVE}/b.dcm": Label(label="NORMAL", line=2),
    }
    pq.write_table(pa.table({"uri": [f"{ARCHIVE}/c.dcm", None], "label": ["NORMAL", "sick"]}), path)
    with pytest.raises(InputError, match=r"row 2: the label is none of|row 2: names no film"):
        labels_from_file(path, ARCHIVE)
    pq.write_table(pa.table({"uri": ["x"], "finding": [True]}), path)
    with pytest.raises(InputError, match="needs the columns"):
        labels_from_file(path, ARCHIVE)
    (tmp_path / "labels.parquet").write_bytes(b"rubbish")
    with pytest.raises(InputError, match="no Parquet file that can be read"):
        labels_from_file(path, ARCHIVE)


def test_truth_values_of_a_parquet_table(tmp_path: Path) -> None:
    path = str(tmp_path / "labels.parquet")
    pq.write_table(pa.table({"path": ["a.dcm", "b.dcm"], "label": [True, False]}), path)
    assert [label.label for label in labels_from_file(path, ARCHIVE).values()] == ["PNEUMONIA", "NORMAL"]
