"""Fixtures of the cluster's tests."""

from collections.abc import Iterator

import pytest

from tests.cluster.ray_head import Head, running_head


@pytest.fixture(scope="session")
def head() -> Iterator[Head]:
    """A cluster of its own with token authentication, as `ray start --head` makes it."""
    with running_head() as running:
        yield running
