"""Each check holds for every overlay, and objects to what it is there for."""

import copy
import re
import tomllib
from typing import Any

import pytest
import typer.main

from cluster.cli import app
from tests.cluster.deploy import checks
from tests.cluster.deploy.checks import CHECKS, Check
from tests.cluster.deploy.kustomize import KUBERAY, OVERLAYS, Manifest, build

BUILT = {overlay: build(KUBERAY / "overlays" / overlay) for overlay in OVERLAYS}
ROOT = KUBERAY.parents[2]
GONE = object()

HEAD = "RayCluster rayscan spec headGroupSpec"
CPU = "RayCluster rayscan spec workerGroupSpecs 0"
GPU = "RayCluster rayscan spec workerGroupSpecs 1"
POD = "template spec"
CONTAINER = "template spec containers 0"
JOB = "RayJob rayscan-night spec"
CRON = "CronJob rayscan-night spec"
LAUNCHER = f"{CRON} jobTemplate spec template spec"
SCALER = "RayCluster rayscan spec autoscalerOptions"

BREAKS: list[tuple[Check, str, str, Any]] = [
    (checks.images_have_a_version, "gpu", f"{HEAD} {CONTAINER} image", "registry.example/rayscan:latest"),
    (checks.images_have_a_version, "gpu", f"{CPU} {CONTAINER} image", "registry.example:5000/rayscan"),
    (checks.images_have_a_version, "nightly", f"{LAUNCHER} containers 0 image", "registry.example/rayscan"),
    (checks.images_have_a_version, "gpu", f"{SCALER} image", "rayproject/ray:latest"),
    (checks.nobody_is_root, "gpu", f"{HEAD} {POD} securityContext runAsUser", 0),
    (checks.nobody_is_root, "gpu", f"{CPU} {POD} securityContext runAsNonRoot", GONE),
    (checks.nobody_is_root, "nightly", f"{JOB} submitterPodTemplate spec securityContext", GONE),
    (checks.nobody_is_root, "gpu", f"{GPU} {CONTAINER} securityContext runAsUser", 0),
    (checks.nobody_is_root, "gpu", f"{HEAD} {POD} securityContext seccompProfile", {"type": "Unconfined"}),
    (checks.nobody_has_rights, "gpu", f"{GPU} {CONTAINER} securityContext allowPrivilegeEscalation", GONE),
    (checks.nobody_has_rights, "gpu", f"{GPU} {CONTAINER} securityContext readOnlyRootFilesystem", False),
    (checks.nobody_has_rights, "gpu", f"{CPU} {CONTAINER} securityContext capabilities", {"add": ["SYS_PTRACE"]}),
    (checks.nobody_has_rights, "gpu", f"{SCALER} securityContext", GONE),
    (checks.nobody_has_rights, "gpu", f"{CPU} {POD} hostNetwork", True),
    (checks.nobody_has_rights, "gpu", f"{CPU} {POD} volumes 0", {"name": "tmp", "hostPath": {"path": "/tmp"}}),
    (checks.what_is_written_has_a_place, "gpu", f"{CPU} {CONTAINER} volumeMounts 2", GONE),
    (checks.what_is_written_has_a_place, "gpu", f"{CPU} {POD} volumes 0 name", "temp"),
    (checks.what_is_written_has_a_place, "gpu", f"{HEAD} {POD} volumes 0 emptyDir", {}),
    (checks.no_secret_in_clear, "gpu", f"{HEAD} {CONTAINER} env 1", {"name": "RAY_AUTH_TOKEN", "value": "0" * 64}),
    (checks.no_secret_in_clear, "gpu", f"{SCALER} env 0", {"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}),
    (checks.no_secret_in_clear, "gpu", "ConfigMap rayscan-environment data RAYSCAN_PATIENT_SECRET", "x" * 16),
    (checks.no_secret_in_clear, "gpu", "ConfigMap rayscan-environment data S", "https://user:word@store"),
    (checks.no_secret_in_clear, "gpu", "ConfigMap rayscan-environment kind", "Secret"),
    (checks.no_secret_in_clear, "nightly", f"{JOB} runtimeEnvYAML", "env_vars: {RAYSCAN_PATIENT_SECRET: x}"),
    (
        checks.no_secret_in_clear,
        "gcs",
        "RayCluster rayscan spec gcsFaultToleranceOptions redisPassword",
        {"value": "in clear"},
    ),
    (checks.the_token_is_asked_for, "gpu", "RayCluster rayscan spec authOptions", GONE),
    (checks.the_token_is_asked_for, "gpu", "RayCluster rayscan spec authOptions mode", "disabled"),
    (checks.the_token_is_asked_for, "gpu", f"{GPU} {CONTAINER} env 0", GONE),
    (checks.the_token_is_asked_for, "nightly", f"{JOB} submitterPodTemplate spec containers 0 env", []),
    (checks.identities_are_apart, "gpu", f"{CPU} {POD} serviceAccountName", "rayscan-head"),
    (checks.identities_are_apart, "gpu", f"{CPU} {POD} serviceAccountName", GONE),
    (checks.identities_are_apart, "gpu", f"{CPU} {POD} automountServiceAccountToken", True),
    (checks.rights_are_the_least, "nightly", "Role rayscan-launcher rules 0 verbs", ["*"]),
    (checks.rights_are_the_least, "nightly", "Role rayscan-launcher rules 0 resources", ["rayjobs", "secrets"]),
    (checks.rights_are_the_least, "nightly", "Role rayscan-launcher kind", "ClusterRole"),
    (checks.rights_are_the_least, "nightly", "RoleBinding rayscan-launcher subjects 0 name", "rayscan-worker"),
    (checks.nothing_is_open, "gpu", "NetworkPolicy nobody spec ingress", [{}]),
    (checks.nothing_is_open, "gpu", "NetworkPolicy nobody spec podSelector", {"matchLabels": {"app": "other"}}),
    (checks.nothing_is_open, "gpu", "NetworkPolicy jobs-api spec ingress 0 from", GONE),
    (checks.nothing_is_open, "gpu", "NetworkPolicy jobs-api spec ingress 0 from 0", {"ipBlock": {"cidr": "0.0.0.0/0"}}),
    (checks.nothing_is_open, "gpu", "NetworkPolicy jobs-api spec ingress 0 from 1 namespaceSelector", {}),
    (checks.nothing_is_open, "gpu", "NetworkPolicy jobs-api spec ingress 0 ports", GONE),
    (checks.nothing_is_open, "gpu", "NetworkPolicy metrics spec ingress 0 ports 0 port", 6379),
    (checks.nothing_is_open, "gpu", f"{HEAD} enableIngress", True),
    (checks.nothing_is_open, "gpu", f"{HEAD} serviceType", "LoadBalancer"),
    (checks.policies_find_their_pods, "gpu", f"{HEAD} template metadata labels", {}),
    (checks.policies_find_their_pods, "gpu", "NetworkPolicy metrics spec podSelector matchLabels", {"app": "rayscan"}),
    (checks.workers_reach_little, "gpu", "NetworkPolicy worker-out spec policyTypes", ["Ingress"]),
    (checks.workers_reach_little, "gpu", "NetworkPolicy worker-out spec egress 2 ports 0 port", 80),
    (checks.workers_reach_little, "gpu", "NetworkPolicy worker-out spec egress 2 ports", GONE),
    (checks.the_namespace_is_restricted, "gpu", "Namespace rayscan metadata labels", {}),
    (checks.the_namespace_is_restricted, "gpu", "RayCluster rayscan metadata namespace", "default"),
    (checks.memory_is_kept, "gpu", f"{CPU} {CONTAINER} resources requests memory", "8Gi"),
    (checks.memory_is_kept, "gpu", f"{HEAD} {CONTAINER} resources limits", GONE),
    (checks.memory_is_kept, "nightly", f"{LAUNCHER} containers 0 resources", GONE),
    (checks.memory_is_kept, "gpu", f"{SCALER} resources requests memory", "512Mi"),
    (checks.memory_is_kept, "gpu", f"{CPU} {POD} volumes 3 emptyDir sizeLimit", "20Gi"),
    (checks.memory_is_kept, "gpu", f"{CPU} rayStartParams object-store-memory", "8589934592"),
    (checks.the_head_does_no_work, "gpu", f"{HEAD} rayStartParams num-cpus", GONE),
    (checks.the_head_does_no_work, "gpu", f"{HEAD} labels market", "spot"),
    (checks.drivers_stay_off_spot, "gpu", f"{HEAD} {POD} affinity", GONE),
    (checks.drivers_stay_off_spot, "nightly", f"{JOB} submitterPodTemplate spec tolerations", [{"operator": "Exists"}]),
    (
        checks.drivers_stay_off_spot,
        "nightly",
        f"{LAUNCHER} affinity nodeAffinity requiredDuringSchedulingIgnoredDuringExecution nodeSelectorTerms 0 "
        "matchExpressions 3",
        GONE,
    ),
    (checks.groups_start_from_nothing, "gpu", f"{CPU} minReplicas", 1),
    (checks.groups_start_from_nothing, "gpu", f"{GPU} replicas", GONE),
    (checks.groups_start_from_nothing, "gpu", f"{GPU} maxReplicas", GONE),
    (checks.groups_start_from_nothing, "gpu", "RayCluster rayscan spec enableInTreeAutoscaling", False),
    (checks.groups_start_from_nothing, "gpu", f"{SCALER} version", "v1"),
    (checks.gpus_are_on_spot, "gpu", f"{GPU} {POD} tolerations", GONE),
    (checks.gpus_are_on_spot, "gpu", f"{GPU} {POD} affinity", GONE),
    (checks.gpus_are_on_spot, "gpu", f"{GPU} labels market", "on-demand"),
    (checks.gpus_are_on_spot, "gpu", f"{CPU} {POD} tolerations", [{"key": "market", "operator": "Exists"}]),
    (checks.a_shard_may_end, "gpu", f"{CPU} {POD} terminationGracePeriodSeconds", GONE),
    (checks.a_shard_may_end, "gpu", f"{GPU} {CONTAINER} lifecycle", GONE),
    (checks.nodes_are_replaced_not_revived, "gpu", f"{CPU} {POD} restartPolicy", "Always"),
    (checks.nodes_are_replaced_not_revived, "nightly", f"{LAUNCHER} restartPolicy", "OnFailure"),
    (checks.jobs_are_what_kuberay_knows, "nightly", f"{JOB} submissionMode", "Nonsense"),
    (checks.jobs_are_what_kuberay_knows, "search", "RayJob rayscan-search spec submissionMode", "SidecarMode"),
    (checks.jobs_are_what_kuberay_knows, "raycron", "RayCronJob rayscan-night spec jobTemplate submissionMode", "k8s"),
    (checks.jobs_end, "nightly", f"{JOB} shutdownAfterJobFinishes", False),
    (checks.jobs_end, "nightly", f"{JOB} activeDeadlineSeconds", GONE),
    (checks.jobs_end, "nightly", f"{JOB} ttlSecondsAfterFinished", 86400),
    (checks.jobs_end, "nightly", f"{JOB} backoffLimit", 50),
    (checks.jobs_are_what_kuberay_knows, "nightly", f"{JOB} clusterSelector", {"ray.io/cluster": "rayscan"}),
    (checks.jobs_are_what_kuberay_knows, "nightly", f"{JOB} entrypoint", "python night.py"),
    (checks.jobs_are_what_kuberay_knows, "nightly", "RayJob rayscan-night metadata name", "n" * 46),
    (checks.nights_do_not_overlap, "nightly", f"{CRON} concurrencyPolicy", "Allow"),
    (checks.nights_do_not_overlap, "nightly", f"{CRON} concurrencyPolicy", GONE),
    (checks.nights_do_not_overlap, "nightly", f"{CRON} startingDeadlineSeconds", GONE),
    (checks.nights_do_not_overlap, "nightly", f"{CRON} jobTemplate spec activeDeadlineSeconds", GONE),
    (checks.nights_do_not_overlap, "nightly", f"{CRON} jobTemplate spec backoffLimit", 6),
    (checks.nights_do_not_overlap, "nightly", f"{CRON} failedJobsHistoryLimit", 0),
    (checks.nights_have_a_clock, "nightly", f"{CRON} timeZone", GONE),
    (checks.nights_have_a_clock, "raycron", "RayCronJob rayscan-night spec timeZone", "Europe/Nowhere"),
    (checks.nights_have_a_clock, "raycron", "RayCronJob rayscan-night spec schedule", "15 2 * *"),
    (checks.wrong_input_is_not_repeated, "nightly", f"{CRON} jobTemplate spec podFailurePolicy", GONE),
    (checks.wrong_input_is_not_repeated, "nightly", f"{LAUNCHER} containers 0 name", "other"),
    (checks.wrong_input_is_not_repeated, "nightly", f"{CRON} jobTemplate spec podFailurePolicy rules 0", GONE),
    (checks.the_pattern_sleeps, "nightly", f"{JOB} suspend", GONE),
    (checks.the_pattern_sleeps, "nightly", f"{LAUNCHER} containers 0 command 3", "rayscan-nihgt"),
]


def broken(manifests: list[Manifest], path: str, value: Any) -> list[Manifest]:
    """The manifests with one thing changed: `path` is a kind, a name, and the way to it, with spaces between."""
    manifests = copy.deepcopy(manifests)
    kind, name, *outer, last = path.split()
    place: Any
    (place,) = [one for one in manifests if one["kind"] == kind and one["metadata"]["name"] == name]
    for step in outer:
        place = place[int(step)] if isinstance(place, list) else place[step]
    key: Any = int(last) if isinstance(place, list) else last
    if value is GONE:
        del place[key]
    else:
        place[key] = value
    return manifests


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("check", CHECKS)
def test_holds(check: Check, overlay: str) -> None:
    assert list(check(BUILT[overlay])) == []


@pytest.mark.parametrize(("check", "overlay", "path", "value"), BREAKS)
def test_objects(check: Check, overlay: str, path: str, value: Any) -> None:
    assert list(check(broken(BUILT[overlay], path, value))) != []


def test_every_check_can_object() -> None:
    assert {check for check, *_ in BREAKS} == set(CHECKS)


def test_cpu_has_no_gpu_and_gpu_has_both() -> None:
    found = {
        overlay: [group["groupName"] for _, cluster in checks.clusters(built) for group in cluster["workerGroupSpecs"]]
        for overlay, built in BUILT.items()
    }
    assert found.pop("cpu") == ["cpu"]
    assert set(map(tuple, found.values())) == {("cpu", "gpu")}


@pytest.mark.parametrize("overlay", ["nightly", "raycron", "search"])
def test_a_run_brings_its_own_cluster(overlay: str) -> None:
    """The one that stays is copied from, and not applied beside it."""
    assert checks.of_kind(BUILT[overlay], "RayCluster") == []
    (stays,) = checks.of_kind(BUILT["gpu"], "RayCluster")
    assert [cluster for _, cluster in checks.clusters(BUILT[overlay])] == [stays["spec"]]


def test_the_versions_are_those_of_the_project() -> None:
    pinned = dict(re.findall(r"^([\w-]+)==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for overlay, built in BUILT.items():
        assert {cluster["rayVersion"] for _, cluster in checks.clusters(built)} == {pinned["ray"]}
        tags = {pod.container["image"].partition(":")[2] for pod in checks.pods(built)}
        assert tags == {f"{version}-{'cpu' if overlay == 'cpu' else 'gpu'}"}


@pytest.mark.parametrize("overlay", ["nightly", "raycron", "search"])
def test_the_job_file_is_there_and_its_verb_reads_it(overlay: str, tmp_path: Any) -> None:
    ((_, job),) = checks.jobs(BUILT[overlay])
    _, verb, _, mounted, *flags = job["entrypoint"].split()
    folder, _, name = mounted.rpartition("/")
    head = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert {"name": "jobs", "mountPath": folder, "readOnly": True} in head["containers"][0]["volumeMounts"]
    sources = next(volume for volume in head["volumes"] if volume["name"] == "jobs")["projected"]["sources"]
    maps = {one["metadata"]["name"]: one["data"] for one in checks.of_kind(BUILT[overlay], "ConfigMap")}
    (text,) = [data[name] for one in sources if name in (data := maps.get(one["configMap"]["name"], {}))]
    (tmp_path / name).write_text(text)
    tables = tomllib.loads(text)
    assert verb in tables
    for table, values in tables.items():
        command = typer.main.get_command(app).commands[table]  # type: ignore[attr-defined]
        given = ["--config", str(tmp_path / name), *(flags if table == verb else [])]
        parsed = command.make_context(table, given).params
        assert [key for key in values if parsed[key.replace("-", "_")] is None] == []
        places = [values[key] for key in ("archive", "catalog", "dataset", "out", "scores") if key in values]
        assert all(place.startswith("s3://") for place in places)


def test_actors_and_trials_are_what_the_cluster_can_become() -> None:
    (cluster,) = [cluster for _, cluster in checks.clusters(BUILT["gpu"])]
    sizes = {
        group["groupName"]: (group["maxReplicas"], group["template"]["spec"]["containers"][0]["resources"]["limits"])
        for group in cluster["workerGroupSpecs"]
    }
    most = {name: nodes * int(limits["cpu"]) for name, (nodes, limits) in sizes.items()}
    night = tomllib.loads((KUBERAY / "night" / "night.toml").read_text())
    search = tomllib.loads((KUBERAY / "overlays" / "search" / "search.toml").read_text())
    assert night["score"]["max-actors"] == search["prepare"]["max-actors"] == most["cpu"]
    nodes, limits = sizes["gpu"]
    assert search["tune"]["concurrent"] * search["tune"]["gpus-per-trial"] == nodes * int(limits["nvidia.com/gpu"])
