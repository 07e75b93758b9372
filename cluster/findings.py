"""What `rayscan doctor` says about a node: each fact with its judgement, and for each fault what mends it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cluster.market import SPOT, market_of
from cluster.node_facts import DashboardFacts, NodeFacts

CLOCK_WARN_SECONDS: Final = 2.0
CLOCK_FAIL_SECONDS: Final = 60.0
"""Leases expire by the nodes' clocks, and object stores refuse requests signed minutes off."""
DISK_WARN_BYTES: Final = 10 * 2**30
DISK_FAIL_SHARE: Final = 0.05
"""Ray stops spilling objects on a disk with less than this free."""
MEMORY_WARN_SHARE: Final = 0.10
MEMORY_FAIL_SHARE: Final = 0.05
"""Ray kills workers on a node with less than this free (RAY_memory_usage_threshold, 0.95)."""
STORE_WARN_SECONDS: Final = 2.0
"""For the first page of a listing; a night makes thousands of requests."""
_LOOPBACK: Final = ("127.", "::1", "::ffff:127.")
_SHOWN: Final = 4
"""Closed ports that are named; the rest are counted."""

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check on one node."""

    node: str
    """Its address."""
    check: str
    state: State
    found: str
    mend: str = ""
    """What to do about it; empty when there is nothing to do."""

    @property
    def ok(self) -> bool:
        """Whether the node passes this check; a warning passes."""
        return self.state != "fail"


@dataclass(frozen=True, kw_only=True)
class _Verdict:
    """A finding without its node."""

    state: State
    found: str
    mend: str = ""


def judge(node: str, facts: NodeFacts, driver: NodeFacts, *, skew: float, ray_gpus: int) -> list[Finding]:
    """Compare the facts of one node with those of the driver.

    `skew` is how many seconds its clock is ahead of the driver's, `ray_gpus` how many GPUs Ray thinks it has.
    """
    verdicts: dict[str, _Verdict | None] = {
        "python": _python(facts, driver),
        "libraries": _libraries(facts, driver),
        "code": _code(facts, driver),
        "start": _start(facts),
        "clock": _clock(skew),
        "disk": _disk(facts),
        "memory": _memory(facts),
        "gpus": _gpus(facts, ray_gpus),
        "auth": _auth(facts),
        "token": _token(facts),
        "folder": _folder(facts),
    }
    return [_finding(node, check, verdict) for check, verdict in verdicts.items() if verdict is not None]


def told(findings: Sequence[Finding]) -> str:
    """All of them for a person: a line each, what mends it below, and how many there are of a kind at the end."""
    wide = max(len(finding.node) for finding in findings)
    checks = max(len(finding.check) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<4}  {finding.node:<{wide}}  {finding.check:<{checks}}  {finding.found}")
        if finding.mend:
            lines.append(f"      mend: {finding.mend}")
    failed, warned = (sum(finding.state == state for finding in findings) for state in ("fail", "warn"))
    lines.append(f"{len(findings)} checks: {failed} failed, {warned} with a warning")
    return "\n".join(lines)


def judge_storage(node: str, uri: str, wrong: str, seconds: float) -> Finding:
    """`wrong` is what the store said, `seconds` how long it took to say so, or to list its beginning."""
    found = f"{uri} listed in {seconds:.2f} s"
    verdict = _Verdict(state="ok", found=found)
    if wrong:
        mend = "give that node's role or environment access to the store, and a network route to it"
        verdict = _Verdict(state="fail", found=f"{wrong} (after {seconds:.2f} s)", mend=mend)
    elif seconds > STORE_WARN_SECONDS:
        mend = "the store is far or busy: use the region of the bucket, and a gateway endpoint in a private subnet"
        verdict = _Verdict(state="warn", found=found, mend=mend)
    return _finding(node, "storage", verdict)


def judge_ports(node: str, asked: int, closed: Sequence[tuple[str, int]]) -> Finding:
    """`closed` are hosts and ports of other nodes, of `asked`, that took no connection from this one."""
    if not closed:
        found = f"all {asked} ports of the other nodes answer" if asked else "no other node"
        return _finding(node, "ports", _Verdict(state="ok", found=found))
    named = ", ".join(f"{host}:{port}" for host, port in closed[:_SHOWN])
    more = f" and {len(closed) - _SHOWN} more" if len(closed) > _SHOWN else ""
    return _finding(
        node,
        "ports",
        _Verdict(
            state="fail",
            found=f"{len(closed)} of {asked} ports of the other nodes do not answer: {named}{more}",
            mend="open the nodes' security group or firewall to each other, on all ports: objects travel directly",
        ),
    )


def judge_metrics(node: str, port: int, answers: bool) -> Finding:
    """`port` is where Ray says that this node exports its metrics."""
    if answers:
        found = f"port {port} answers, and asks for no token: let only Prometheus reach it"
        return _finding(node, "metrics", _Verdict(state="ok", found=found))
    mend = "Prometheus sees nothing of that node: look at dashboard_agent.log there, or free that port"
    return _finding(node, "metrics", _Verdict(state="warn", found=f"nothing answers at port {port}", mend=mend))


def judge_head(node: str, dashboard: DashboardFacts | None, labels: Mapping[str, str]) -> list[Finding]:
    """What holds for the head alone: its dashboard (None: off), and the market its labels tell."""
    findings = [_finding(node, "dashboard", _dashboard(dashboard))]
    if market := market_of(labels):
        verdict = _Verdict(state="ok", found=market)
        if market == SPOT:
            found = "the head is on spot: with it go the cluster and every run's driver"
            verdict = _Verdict(state="fail", found=found, mend="start the head on demand; only workers may be on spot")
        findings.append(_finding(node, "market", verdict))
    return findings


def silence(node: str, error: Exception, seconds: float) -> Finding:
    """Of a node that did not answer at all."""
    return Finding(
        node=node,
        check="answer",
        state="fail",
        found=f"{type(error).__name__} after at most {seconds:g} s",
        mend="look at that node's log on the dashboard, or take it out with `ray drain-node`",
    )


def _finding(node: str, check: str, verdict: _Verdict) -> Finding:
    return Finding(node=node, check=check, state=verdict.state, found=verdict.found, mend=verdict.mend)


def _python(facts: NodeFacts, driver: NodeFacts) -> _Verdict:
    if facts.python == driver.python:
        return _Verdict(state="ok", found=facts.python)
    return _Verdict(
        state="fail",
        found=f"{facts.python}, the driver has {driver.python}",
        mend="use one Python on all nodes: Ray moves code between them as that version's byte code",
    )


def _libraries(facts: NodeFacts, driver: NodeFacts) -> _Verdict:
    others = {name: version for name, version in facts.libraries.items() if version != driver.libraries[name]}
    if not others:
        return _Verdict(state="ok", found=", ".join(f"{name} {has}" for name, has in facts.libraries.items()))
    return _Verdict(
        state="fail",
        found=", ".join(f"{name} {has}, the driver has {driver.libraries[name]}" for name, has in others.items()),
        mend="`pip install -c constraints.txt` rayscan there: another decoder gives other pixels, so other scores",
    )


def _code(facts: NodeFacts, driver: NodeFacts) -> _Verdict:
    if facts.source == driver.source:
        return _Verdict(state="ok", found=facts.source)
    return _Verdict(
        state="fail",
        found=f"{facts.source}, the driver has {driver.source}",
        mend="another rayscan, or a stranger's package, comes first on that node's PYTHONPATH: remove it",
    )


def _start(facts: NodeFacts) -> _Verdict:
    if not facts.slow_imports:
        return _Verdict(state="ok", found="no package slows Ray's processes")
    return _Verdict(
        state="warn",
        found=f"{', '.join(facts.slow_imports)} is installed: each process of Ray takes seconds more to start",
        mend="give rayscan an environment of its own, without Jupyter, which brings that package",
    )


def _clock(skew: float) -> _Verdict:
    off = abs(skew)
    state: State = "ok" if off < CLOCK_WARN_SECONDS else "warn" if off < CLOCK_FAIL_SECONDS else "fail"
    mend = "" if state == "ok" else "start the time service (chrony) on that node"
    return _Verdict(state=state, found=f"{skew:+.2f} s from the driver's", mend=mend)


def _disk(facts: NodeFacts) -> _Verdict:
    full = facts.free_bytes < DISK_FAIL_SHARE * facts.total_bytes
    state: State = "fail" if full else "warn" if facts.free_bytes < DISK_WARN_BYTES else "ok"
    return _Verdict(
        state=state,
        found=f"{_gib(facts.free_bytes)} free of {_gib(facts.total_bytes)} in the temporary folder",
        mend=""
        if state == "ok"
        else "delete old session_* folders of Ray there, or start Ray with --temp-dir elsewhere",
    )


def _memory(facts: NodeFacts) -> _Verdict:
    if facts.free_memory is None:
        return _Verdict(state="ok", found=f"{_gib(facts.total_memory)}, how much of it is free is unknown")
    share = facts.free_memory / facts.total_memory
    state: State = "fail" if share < MEMORY_FAIL_SHARE else "warn" if share < MEMORY_WARN_SHARE else "ok"
    return _Verdict(
        state=state,
        found=f"{_gib(facts.free_memory)} free of {_gib(facts.total_memory)}",
        mend=""
        if state == "ok"
        else "Ray kills workers there from 95 % on: see `rayscan jobs` for what holds it, or give runs `--memory 2GiB`",
    )


def _gpus(facts: NodeFacts, ray_gpus: int) -> _Verdict:
    seen = f"torch sees {facts.gpus}, Ray offers {ray_gpus}, the driver {_driver(facts)}"
    build = f"CUDA {facts.cuda}" if facts.cuda else "no CUDA"
    if facts.gpus < ray_gpus:
        mend = f"work sent there will fail: check `nvidia-smi` there; this torch was built for {build}"
        return _Verdict(state="fail", found=seen, mend=mend)
    if facts.gpus > ray_gpus:
        return _Verdict(state="warn", found=seen, mend="GPUs lie idle: start Ray on that node with --num-gpus")
    if facts.gpus < len(facts.driver_gpus):
        mend = f"GPUs lie idle: this torch was built for {build}; install the build for CUDA, or a driver as new as it"
        return _Verdict(state="warn", found=seen, mend=mend)
    return _Verdict(state="ok", found=f"{facts.gpus}, the driver {_driver(facts)}" if facts.gpus else "0")


def _driver(facts: NodeFacts) -> str:
    if not facts.driver:
        return "is missing"
    return f"{facts.driver} sees {len(facts.driver_gpus)} ({', '.join(sorted(set(facts.driver_gpus)))})"


def _auth(facts: NodeFacts) -> _Verdict:
    if facts.asks_token:
        return _Verdict(state="ok", found="Ray asks for the token")
    return _Verdict(
        state="fail",
        found="Ray asks for no token: whoever reaches its ports can run code there",
        mend="`ray get-auth-token --generate`, the same file on all nodes, and RAY_AUTH_MODE=token before `ray start`",
    )


def _token(facts: NodeFacts) -> _Verdict | None:
    if not facts.token_file:
        return _Verdict(state="ok", found="from RAY_AUTH_TOKEN") if facts.asks_token else None
    found = f"{facts.token_file} has mode {facts.token_mode:04o}"
    if not facts.token_mode & 0o077:
        return _Verdict(state="ok", found=found)
    return _Verdict(
        state="fail",
        found=f"{found}: other accounts of that machine can read it, and run code on the cluster",
        mend=f"chmod 600 {facts.token_file}",
    )


def _folder(facts: NodeFacts) -> _Verdict | None:
    if facts.in_pod:
        return None  # a pod has one account
    if not facts.open_folder:
        return _Verdict(state="ok", found="no other account may enter Ray's")
    return _Verdict(
        state="warn",
        found=f"every account of that machine may enter {facts.open_folder}, with Ray's code, logs and sockets",
        mend="before `ray start`: RAY_TMPDIR=/a/folder/of/mode/0700, or a link to such a one as /tmp/ray",
    )


def _dashboard(facts: DashboardFacts | None) -> _Verdict:
    if facts is None:
        return _Verdict(state="ok", found="off")
    bound = ", ".join(facts.bound) or "an unknown address"
    if facts.status is None:
        mend = "`submit` and Ray Tune need it: look at dashboard.log on the head, and start the head again"
        return _Verdict(state="fail", found=f"nothing answers at port {facts.port}", mend=mend)
    if facts.status not in (401, 403):
        mend = "start the head with RAY_AUTH_MODE=token: whoever reaches the dashboard can run code"
        found = f"port {facts.port} on {bound} answers without a token ({facts.status})"
        return _Verdict(state="fail", found=found, mend=mend)
    found = f"port {facts.port} on {bound}, asks for the token"
    if all(address.startswith(_LOOPBACK) for address in facts.bound):
        return _Verdict(state="ok", found=found)
    return _Verdict(
        state="warn",
        found=found,
        mend="start the head with --dashboard-host=127.0.0.1, use `ray dashboard`; for pods a NetworkPolicy does it",
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
