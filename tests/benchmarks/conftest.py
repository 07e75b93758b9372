"""What measurements share."""

from collections.abc import Iterator

import pytest


@pytest.fixture
def ray_of_this_machine() -> Iterator[None]:
    """A Ray with as many CPUs as the machine has, gone after the test."""
    import ray

    ray.init("local", include_dashboard=False, logging_level="WARNING", log_to_driver=False)
    yield
    ray.shutdown()
