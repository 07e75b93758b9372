"""What the cluster has, and what its autoscaler can make of it.

A cluster that grows from nothing has no CPU at the moment a run looks at it, so runs are sized by what it can become:
the nodes that are there, and the node types of the autoscaler. Ray 2.60 has no public interface for those. They are in
the control store where somebody reported them (hosted Ray does), else in the file the autoscaler was started with,
which lies on the head node. Where neither can be read, the cluster is taken as it is now.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

log = logging.getLogger("rayscan")

ANY_NUMBER: Final = 10_000
"""Nodes of a type without a limit."""
HEAD: Final = "node:__internal_head__"
"""The resource by which Ray marks the head node."""
ANSWER_SECONDS: Final = 30.0
"""Seconds the head node has to say what its autoscaler may start."""


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """Nodes of one size."""

    cpus: int
    gpus: int = 0
    memory: int | None = None
    """Bytes that Ray lends to actors which ask for memory; None: not said, so taken as enough."""
    count: int = 1
    """How many there are, or may be at most."""

    def room(self, memory: int | None = None) -> int:
        """Actors of one core, and of this memory, that fit on one such node."""
        if not memory or self.memory is None:
            return self.cpus
        return min(self.cpus, self.memory // memory)


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The cluster now, and the most it can become."""

    nodes: tuple[NodeType, ...]
    """Those that are alive."""
    node_types: tuple[NodeType, ...] = ()
    """What the autoscaler may start; empty on a cluster of fixed size."""
    most_nodes: int | None = None
    """Most nodes of all types together that the autoscaler starts; None: no limit of its own."""
    head: NodeType = field(default=NodeType(cpus=0))
    """Among `nodes`, but none of the autoscaler's."""

    @property
    def cpus(self) -> int:
        """CPUs now."""
        return self.room()

    @property
    def gpus(self) -> int:
        """GPUs now."""
        return sum(node.gpus * node.count for node in self.nodes)

    @property
    def most_cpus(self) -> int:
        """CPUs of the cluster when it is as large as it can get for work that wants no GPU."""
        return self.most_room()

    @property
    def most_gpus(self) -> int:
        """GPUs of the cluster when it has as many as it can get."""
        grown, _ = self._with_gpus(ANY_NUMBER)
        return max(self.gpus, self.head.gpus + sum(kind.gpus * kind.count for kind in grown))

    @property
    def largest_cpus(self) -> int:
        """CPUs of the largest node there is or may be; 0 where none has any."""
        return max((node.cpus for node in (*self.nodes, *self.node_types) if node.count), default=0)

    def room(self, memory: int | None = None) -> int:
        """Actors of one core and of this memory (bytes) that fit on the nodes there are, were they empty."""
        return sum(node.room(memory) * node.count for node in self.nodes)

    def most_room(self, memory: int | None = None, *, gpus: int = 0) -> int:
        """Actors of one core and of this memory (bytes) that fit on the cluster when it is as large as it can get.

        Nodes with GPUs count as far as so many `gpus` are asked for. The autoscaler would start the others, too, once
        it has no cheaper ones left: such room is only counted where there are no others at all.
        """
        grown, left = self._with_gpus(gpus)
        plain = [kind for kind in self.node_types if not kind.gpus] or ([] if gpus else self.node_types)
        for kind in sorted(plain, key=lambda kind: kind.room(memory), reverse=True):
            grown.append(replace(kind, count=min(kind.count, left)))
            left -= grown[-1].count
        most = self.head.room(memory) + sum(kind.room(memory) * kind.count for kind in grown)
        return max(self.room(memory), most)

    def largest_memory(self) -> int | None:
        """Memory of the largest node there is or may be, in bytes; None where one does not say."""
        sizes = [node.memory for node in (*self.nodes, *self.node_types) if node.count and node.cpus]
        known = [size for size in sizes if size is not None]
        return max(known) if known and len(known) == len(sizes) else None

    def _with_gpus(self, wanted: int) -> tuple[list[NodeType], int]:
        """The nodes the autoscaler has to start for so many GPUs, and how many more it may start then."""
        left = sum(kind.count for kind in self.node_types) if self.most_nodes is None else self.most_nodes
        grown = []
        for kind in sorted(self.node_types, key=lambda kind: kind.gpus, reverse=True):
            if kind.gpus:
                count = min(kind.count, left, -(-wanted // kind.gpus))
                grown.append(replace(kind, count=count))
                left, wanted = left - count, max(0, wanted - count * kind.gpus)
        return grown, left


def cluster_capacity() -> Capacity:
    """The capacity of the cluster this driver is connected to."""
    import ray  # noqa: PLC0415 (modules that use this are also imported without Ray)

    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    nodes = tuple(_node_type(node["Resources"]) for node in alive)
    heads = [node for node in alive if HEAD in node["Resources"]]
    config = _reported_types() or (_asked_on_head(heads[0]["NodeID"]) if heads else None)
    if config is None:
        if not sum(node.cpus for node in nodes) or "KUBERNETES_SERVICE_HOST" in os.environ:
            log.info("what the autoscaler may start cannot be read here: give --max-actors or --concurrent to let it")
        return Capacity(nodes=nodes)
    kinds, most_nodes = config
    head = _node_type(heads[0]["Resources"]) if heads else NodeType(cpus=0)
    return Capacity(nodes=nodes, node_types=kinds, most_nodes=most_nodes, head=head)


def _node_type(resources: Mapping[str, Any], count: int = 1) -> NodeType:
    memory = resources.get("memory")
    return NodeType(
        cpus=int(resources.get("CPU", 0)),
        gpus=int(resources.get("GPU", 0)),
        memory=None if memory is None else int(memory),
        count=ANY_NUMBER if count < 0 else count,
    )


_Config = tuple[tuple[NodeType, ...], int | None]


def _reported_types() -> _Config | None:
    """The node types in Ray's control store; None where nobody reported them."""
    try:
        from ray._private.state import state  # noqa: PLC0415

        config = state.get_cluster_config()
    except (AttributeError, ImportError):  # another Ray inside
        return None
    if config is None or not config.node_group_configs:
        return None
    return tuple(_node_type(group.resources, group.max_count) for group in config.node_group_configs), None


def _asked_on_head(node_id: str) -> _Config | None:
    """What the head node's autoscaler was configured with; None without one, or if the head does not answer."""
    import ray  # noqa: PLC0415
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    context = ray.get_runtime_context()
    if context.get_node_id() == node_id:
        return autoscaler_config(context.gcs_address)
    there: Any = NodeAffinitySchedulingStrategy(node_id, soft=False)
    ask: Any = ray.remote(autoscaler_config).options(num_cpus=0, scheduling_strategy=there, max_retries=0)
    answer = ask.remote(context.gcs_address)
    try:
        config: _Config | None = ray.get(answer, timeout=ANSWER_SECONDS)
    except ray.exceptions.RayError as error:
        log.info("the head node does not say what its autoscaler may start: %s", error)
        return None
    return config


def autoscaler_config(gcs_address: str, processes: Path = Path("/proc")) -> _Config | None:
    """Node types and most workers in the file that the autoscaler of this cluster was started with, on this machine.

    None if no autoscaler of a cluster with this address of its control store runs here, or its file cannot be read.
    """
    for entry in processes.glob("[0-9]*"):
        try:
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it ended, or belongs to somebody else
            continue
        if f"--gcs-address={gcs_address}" not in arguments:
            continue
        for argument in arguments:
            name, _, path = argument.partition("=")
            if name == "--autoscaling-config" and path:
                return _read_config(Path(path).expanduser())
    return None


def _read_config(path: Path) -> _Config | None:
    import yaml  # noqa: PLC0415 (comes with Ray)

    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        log.info("the autoscaler's configuration cannot be read: %s", error)
        return None
    most = config.get("max_workers")
    types = config.get("available_node_types", {})
    # A type without its own limit has that of the cluster; the head node is not the autoscaler's to start.
    kinds = tuple(
        _node_type(kind.get("resources", {}), kind.get("max_workers", most or 0))
        for name, kind in types.items()
        if name != config.get("head_node_type")
    )
    return kinds, most


@contextmanager
def asked_for(bundles: Sequence[Mapping[str, float]]) -> Iterator[Callable[[], None]]:
    """Ask the autoscaler for room for all of these while the block runs, or until what this yields is called.

    Actors that wait for a place are a demand themselves; this one is not slowed down by the autoscaler's upscaling
    speed. Ray keeps one such request per cluster, and it outlives its driver, so it is taken back however the block
    ends. Ray Data's coordinator overwrites it within 20 s, which does no harm once the actors wait.
    """
    from ray.autoscaler.sdk import request_resources  # noqa: PLC0415
    from ray.exceptions import RayError  # noqa: PLC0415

    asked = bool(bundles)

    def release() -> None:
        nonlocal asked
        if asked:
            asked = False
            try:
                request_resources(bundles=[])
            except RayError as error:  # the cluster is gone, and its wishes with it
                log.info("the request to the autoscaler could not be taken back: %s", error)

    if asked:
        request_resources(bundles=[dict(bundle) for bundle in bundles])
    try:
        yield release
    finally:
        release()
