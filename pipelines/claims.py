"""Who holds the CPUs and GPUs of the cluster, and who waits for some.

Read from Ray's control store, by names of `ray._private`: the public interface for this needs a dashboard, which a Ray
that was started for one run does not have.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

NOWHERE: Final = b"\xff"
"""All bytes of the id of no node."""

log = logging.getLogger("rayscan")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """An actor, or a reservation for some, that has resources or waits for them."""

    job: str
    """Ray's job id."""
    name: str
    """The actor's class."""
    cpus: float
    gpus: float
    node: str | None
    """The node it has its place on; None: it waits."""


def claims() -> list[Claim] | None:
    """All actors and placement groups on the cluster that want CPUs or GPUs, and have them or wait for them.

    None where they cannot be read; the log says so once.
    """
    from ray.exceptions import RayError  # noqa: PLC0415

    try:
        return [*_actor_claims(), *_group_claims()]
    except (AttributeError, ImportError, TypeError, RayError) as error:  # another Ray inside, or its store is gone
        log.info("who waits for the cluster and who holds it cannot be read from here on: %s", error)
        return None


def _actor_claims() -> Iterator[Claim]:
    accessor, gcs_pb2 = _control_store()
    for name in ("ALIVE", "PENDING_CREATION", "RESTARTING"):  # the dead may be many
        for raw in accessor.get_actor_table(None, name):
            actor = gcs_pb2.ActorTableData.FromString(raw)
            wants = actor.required_resources
            # Actors inside a placement group ask for resources of other names; the group itself is counted.
            if wants.get("CPU") or wants.get("GPU"):
                yield Claim(
                    job=actor.job_id.hex(),
                    name=actor.class_name,
                    cpus=wants.get("CPU", 0.0),
                    gpus=wants.get("GPU", 0.0),
                    # While it waits, its address names the node that is asked for a place, but no process.
                    node=actor.address.node_id.hex() if actor.address.worker_id else None,
                )


def _group_claims() -> Iterator[Claim]:
    accessor, gcs_pb2 = _control_store()
    for raw in accessor.get_placement_group_table():
        group = gcs_pb2.PlacementGroupTableData.FromString(raw)
        if group.state == gcs_pb2.PlacementGroupTableData.REMOVED:
            continue
        for bundle in group.bundles:
            wants = bundle.unit_resources
            yield Claim(
                job=group.creator_job_id.hex(),
                name="placement group",
                cpus=wants.get("CPU", 0.0),
                gpus=wants.get("GPU", 0.0),
                node=bundle.node_id.hex() if bundle.node_id.strip(NOWHERE) else None,
            )


def job_names(jobs: Iterable[str]) -> dict[str, str]:
    """What each of these jobs calls itself: the verb of a rayscan session, else its id."""
    accessor, gcs_pb2 = _control_store()
    wanted, names = set(jobs), {}
    for raw in accessor.get_job_table(skip_submission_job_info_field=True, skip_is_running_tasks_field=True):
        job = gcs_pb2.JobTableData.FromString(raw)
        if (number := job.job_id.hex()) in wanted:
            names[number] = job.config.metadata.get("rayscan") or f"job {number}"
    return names


def _control_store() -> tuple[Any, Any]:
    """What reads Ray's control store, and the module of the messages that lie there."""
    from ray._private.state import state  # noqa: PLC0415
    from ray.core.generated import gcs_pb2  # noqa: PLC0415

    return state._connect_and_get_accessor(), gcs_pb2


def sizes() -> tuple[float, float]:
    """CPUs and GPUs of the cluster as it is now."""
    import ray  # noqa: PLC0415

    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return have.get("CPU", 0.0), have.get("GPU", 0.0)


def own_job() -> str:
    """The id of this driver's job."""
    import ray  # noqa: PLC0415

    return str(ray.get_runtime_context().get_job_id())
