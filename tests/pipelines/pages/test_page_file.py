"""A page is written to one file."""

from pathlib import Path

import pytest

from pipelines.errors import InputError
from pipelines.pages.page_file import put_page


@pytest.mark.parametrize("out", ["", "new/", "s3://bucket"])
def test_a_page_needs_a_file_name(tmp_path: Path, out: str) -> None:
    target = out if "://" in out else f"{tmp_path}/{out}"
    with pytest.raises(InputError, match="a report is one file"):
        put_page("page", target)


def test_folders_are_made(tmp_path: Path) -> None:
    out = tmp_path / "new" / "deep" / "page.html"
    assert put_page("page é", str(out)) == f"file://{out}"
    assert out.read_text() == "page é"
