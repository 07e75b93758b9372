"""The store that the tests of pages fill and report on."""

from pathlib import Path

import pytest

from pipelines.storage import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty local store."""
    return open_store(str(tmp_path / "it"))
