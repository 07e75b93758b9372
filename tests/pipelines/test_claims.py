"""What is read of Ray's control store, on a real Ray."""

import pytest

from pipelines.claims import claims, job_names, own_job


class Holds:
    """An actor."""

    def there(self) -> bool:
        return True


@pytest.mark.usefixtures("ray_session")
def test_actors_with_a_place_and_those_that_wait_are_told_apart() -> None:
    import ray

    kinds = [ray.remote(Holds).options(num_cpus=cpus).remote() for cpus in (1, 64)]
    try:
        assert ray.get(kinds[0].there.remote())
        found = claims()
        assert found is not None
        mine = sorted((c.cpus, c.node is not None) for c in found if c.name == "Holds" and c.job == own_job())
        assert mine == [(1.0, True), (64.0, False)]
    finally:
        for kind in kinds:
            ray.kill(kind)


@pytest.mark.usefixtures("ray_session")
def test_a_job_is_called_what_its_session_says_or_by_its_number() -> None:
    assert job_names({own_job()}) == {own_job(): f"job {own_job()}"}
