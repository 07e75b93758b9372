"""What a schema lets pass and a hospital should not: each check lists what is wrong with a set of manifests.

`test_checks.py` runs every check over every overlay, and breaks a manifest for each to see that it objects.
"""

import re
import zoneinfo
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tests.cluster.deploy.kustomize import Manifest
from tests.cluster.deploy.pods import Pod, clusters, containers, groups, jobs, name_of, of_kind, pods

Check = Callable[[Sequence[Manifest]], Iterator[str]]

MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
"""Of submission, as KubeRay knows them; its definition takes any word."""
SPOT = {
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "cloud.google.com/gke-spot": "true",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
"""What the clouds write on a node that they may take away."""
SECRET = re.compile(r"secret|token|password|credential|_key", re.IGNORECASE)
LONGEST_NAME = 47
"""Of a RayJob, as KubeRay checks it: it appends to it."""


# Images and rights


def images_have_a_version(manifests: Sequence[Manifest]) -> Iterator[str]:
    for where, container in containers(manifests):
        if where.endswith("autoscaler") and "image" not in container:
            continue  # KubeRay takes the head's
        image = container.get("image", "")
        tag = image.rpartition("/")[2].partition("@")[0].partition(":")[2]
        if "@sha256:" not in image and tag in ("", "latest"):
            yield f"{where}: the image {image!r} is another one tomorrow"


def nobody_is_root(manifests: Sequence[Manifest]) -> Iterator[str]:
    for pod in pods(manifests):
        context = pod.spec.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
            yield f"{pod.where}: may run as root"
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{pod.where}: every system call is allowed"
    for where, container in containers(manifests):
        context = container.get("securityContext", {})
        if context.get("runAsNonRoot") is False or context.get("runAsUser") == 0:
            yield f"{where}: runs as root"


def nobody_has_rights(manifests: Sequence[Manifest]) -> Iterator[str]:
    for where, container in containers(manifests):
        context = container.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            yield f"{where}: may gain rights"
        if context.get("readOnlyRootFilesystem") is not True:
            yield f"{where}: may change its own programs"
        if context.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{where}: keeps capabilities of root"
    for pod in pods(manifests):
        if any(pod.spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{pod.where}: shares a namespace with its node"
        if any("hostPath" in volume for volume in pod.spec.get("volumes", ())):
            yield f"{pod.where}: mounts a folder of its node"


def what_is_written_has_a_place(manifests: Sequence[Manifest]) -> Iterator[str]:
    """The root file system is read-only: Ray, caches and libraries need their volumes."""
    wanted = {
        "head": {"/tmp", "/home/rayscan", "/var/cache/rayscan", "/dev/shm"},
        "worker": {"/tmp", "/home/rayscan", "/var/cache/rayscan", "/dev/shm"},
        "submitter": {"/tmp", "/home/rayscan"},
        "launcher": {"/tmp"},
    }
    for pod in pods(manifests):
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", ())}
        mounts = {mount["mountPath"]: mount["name"] for mount in pod.container.get("volumeMounts", ())}
        if unknown := set(mounts.values()) - volumes.keys():
            yield f"{pod.where}: mounts {unknown}, which it has not"
        writable = {path for path, name in mounts.items() if "emptyDir" in volumes.get(name, {})}
        if missing := wanted[pod.role] - writable:
            yield f"{pod.where}: nothing can be written to {missing}"
        for name, volume in volumes.items():
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"{pod.where}: {name} may fill the disk of the node"


# Secrets and identities


def no_secret_in_clear(manifests: Sequence[Manifest]) -> Iterator[str]:
    yield from _clear_in_files(manifests)
    for where, container in containers(manifests):
        for variable in container.get("env", ()):
            by_reference = "secretKeyRef" in variable.get("valueFrom", {})
            if SECRET.search(variable["name"]) and not by_reference:
                yield f"{where}: {variable['name']} stands there"
    for name, cluster in clusters(manifests):
        redis = cluster.get("gcsFaultToleranceOptions", {})
        if redis and "secretKeyRef" not in redis.get("redisPassword", {}).get("valueFrom", {}):
            yield f"{name}: the password of Redis is no reference to a secret"
    for name, job in jobs(manifests):
        if SECRET.search(job.get("runtimeEnvYAML", "") + job["entrypoint"]):
            yield f"{name}: Ray shows its entrypoint and its environment to everybody"


def the_token_is_asked_for(manifests: Sequence[Manifest]) -> Iterator[str]:
    for name, cluster in clusters(manifests):
        options = cluster.get("authOptions", {})
        if options.get("mode") != "token" or not options.get("secretName"):
            yield f"{name}: KubeRay is not told of the token"
    for pod in pods(manifests):
        if pod.role == "launcher":
            continue
        variables = {variable["name"]: variable for variable in pod.container.get("env", ())}
        if variables.get("RAY_AUTH_MODE", {}).get("value") != "token" or "RAY_AUTH_TOKEN" not in variables:
            yield f"{pod.where}: Ray asks for no token"


def identities_are_apart(manifests: Sequence[Manifest]) -> Iterator[str]:
    known = {manifest["metadata"]["name"] for manifest in of_kind(manifests, "ServiceAccount")}
    found: dict[str, set[str]] = {}
    for pod in pods(manifests):
        account = pod.spec.get("serviceAccountName", "default")
        found.setdefault(account, set()).add(pod.role)
        if account not in known:
            yield f"{pod.where}: no account {account} of its own"
        if pod.role in ("worker", "submitter") and pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.where}: holds a token of Kubernetes"
    yield from (f"{account} is shared by {roles}" for account, roles in found.items() if len(roles) > 1)


def rights_are_the_least(manifests: Sequence[Manifest]) -> Iterator[str]:
    for manifest in of_kind(manifests, "ClusterRole", "ClusterRoleBinding"):
        yield f"{name_of(manifest)}: a right over every namespace"
    for manifest in of_kind(manifests, "Role"):
        for rule in manifest["rules"]:
            if (rule["apiGroups"], rule["resources"]) != (["ray.io"], ["rayjobs"]):
                yield f"{name_of(manifest)}: a right over {rule['resources']}"
            if more := set(rule["verbs"]) - {"get", "create"}:
                yield f"{name_of(manifest)}: may {more}"
    roles = {manifest["metadata"]["name"] for manifest in of_kind(manifests, "Role")}
    for manifest in of_kind(manifests, "RoleBinding"):
        if manifest["roleRef"]["kind"] != "Role" or manifest["roleRef"]["name"] not in roles:
            yield f"{name_of(manifest)}: binds a role that is not here"
        if [subject["name"] for subject in manifest["subjects"]] != ["rayscan-launcher"]:
            yield f"{name_of(manifest)}: binds more than the launcher"


# The network


def nothing_is_open(manifests: Sequence[Manifest]) -> Iterator[str]:
    policies = of_kind(manifests, "NetworkPolicy")
    if not any(
        policy["spec"]["podSelector"] == {}
        and "Ingress" in policy["spec"]["policyTypes"]
        and not policy["spec"].get("ingress")
        for policy in policies
    ):
        yield "no policy closes the namespace"
    for policy in policies:
        for rule in policy["spec"].get("ingress", ()):
            senders = rule.get("from", [{}])
            if any(not sender or "ipBlock" in sender or {} in sender.values() for sender in senders):
                yield f"{name_of(policy)}: lets everybody in"
            ports = {port["port"] for port in rule.get("ports", ())}
            ours = all("namespaceSelector" not in sender for sender in senders)
            if not ours and (not ports or ports & {6379, 10001}):
                yield f"{name_of(policy)}: lets another namespace reach Ray's own ports"
    for cluster_name, cluster in clusters(manifests):
        head = cluster["headGroupSpec"]
        if head.get("enableIngress") or head.get("serviceType", "ClusterIP") != "ClusterIP":
            yield f"{cluster_name}: the dashboard is reachable from outside"


def policies_find_their_pods(manifests: Sequence[Manifest]) -> Iterator[str]:
    """A label that is misspelt closes a port for good, or leaves one open."""
    made = [pod for pod in pods(manifests) if pod.role != "launcher"]
    for pod in made:
        if pod.labels != {"app.kubernetes.io/part-of": "rayscan", "app.kubernetes.io/component": pod.role}:
            yield f"{pod.where}: its labels are {pod.labels}"
    for policy in of_kind(manifests, "NetworkPolicy"):
        selector = policy["spec"]["podSelector"]
        if made and not any(_selects(selector, pod.labels) for pod in made):
            yield f"{name_of(policy)}: selects no pod"


def workers_reach_little(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Whatever a hostile file makes of its decoder cannot ask the cloud for credentials, nor look around."""
    for pod in pods(manifests):
        if pod.role != "worker":
            continue
        rules = [
            policy["spec"].get("egress", [])
            for policy in of_kind(manifests, "NetworkPolicy")
            if "Egress" in policy["spec"]["policyTypes"] and _selects(policy["spec"]["podSelector"], pod.labels)
        ]
        if not rules:
            yield f"{pod.where}: may connect to anything"
        for rule in (rule for policy in rules for rule in policy):
            ports = {port["port"] for port in rule.get("ports", ())}
            if "to" not in rule and (not ports or ports - {53, 443}):
                yield f"{pod.where}: may connect to anything at {ports or 'every port'}"


def the_namespace_is_restricted(manifests: Sequence[Manifest]) -> Iterator[str]:
    spaces = of_kind(manifests, "Namespace")
    for space in spaces:
        if space["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"{name_of(space)}: Kubernetes lets pods with rights in"
    names = {space["metadata"]["name"] for space in spaces}
    for manifest in manifests:
        if manifest["kind"] != "Namespace" and {manifest["metadata"].get("namespace")} != names:
            yield f"{name_of(manifest)}: lies in no namespace of ours"


# Resources, and where pods go


def memory_is_kept(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Asked for as much as allowed: or a node takes more pods than it can hold, and kills one in the night."""
    for where, container in containers(manifests):
        resources = container.get("resources", {})
        asked, most = (resources.get(key, {}).get("memory") for key in ("requests", "limits"))
        if asked is None or asked != most:
            yield f"{where}: asks for {asked} of memory and may take {most}"
    for pod in pods(manifests):
        limit = pod.container.get("resources", {}).get("limits", {}).get("memory", "0")
        for volume in pod.spec.get("volumes", ()):
            directory = volume.get("emptyDir", {})
            if directory.get("medium") == "Memory" and 2 * _bytes(directory.get("sizeLimit", "1Ti")) > _bytes(limit):
                yield f"{pod.where}: {volume['name']} leaves less than half of {limit}"
    for name, cluster in clusters(manifests):
        for spec in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            volumes = {one["name"]: one for one in spec["template"]["spec"]["volumes"]}
            shared = volumes.get("shared-memory", {}).get("emptyDir", {}).get("sizeLimit", "0")
            if not 0 < int(spec["rayStartParams"].get("object-store-memory", 0)) < _bytes(shared):
                yield f"{name}: the object store does not fit into shared memory ({shared})"


def the_head_does_no_work(manifests: Sequence[Manifest]) -> Iterator[str]:
    for name, cluster in clusters(manifests):
        head = cluster["headGroupSpec"]
        if head["rayStartParams"].get("num-cpus") != "0":
            yield f"{name}: the head takes tasks"
        if head.get("labels") != {"market": "on-demand", "role": "head"}:
            yield f"{name}: the head's labels are {head.get('labels')}"


def drivers_stay_off_spot(manifests: Sequence[Manifest]) -> Iterator[str]:
    for pod in pods(manifests):
        if pod.role == "worker":
            continue
        terms = _terms(pod)
        excluded = [
            {one["key"] for one in term if one["operator"] == "NotIn" and SPOT.get(one["key"]) in one["values"]}
            for term in terms
        ]
        if not terms or any(keys != SPOT.keys() for keys in excluded):
            yield f"{pod.where}: may be put on spot"
        if pod.spec.get("tolerations"):
            yield f"{pod.where}: is at home on nodes that others keep away from"


def groups_start_from_nothing(manifests: Sequence[Manifest]) -> Iterator[str]:
    for where, group in groups(manifests):
        if group.get("minReplicas") != 0 or group.get("replicas") != 0:
            yield f"{where}: nodes that nobody asked for"
        if not 0 < group.get("maxReplicas", 0) < 1000:
            yield f"{where}: no bound"
    for name, cluster in clusters(manifests):
        options = cluster.get("autoscalerOptions", {})
        if cluster.get("enableInTreeAutoscaling") is not True or options.get("version") != "v2":
            yield f"{name}: nobody starts nodes, or the autoscaler before v2 does"


def gpus_are_on_spot(manifests: Sequence[Manifest]) -> Iterator[str]:
    for where, group in groups(manifests):
        spec = group["template"]["spec"]
        has_gpu = "nvidia.com/gpu" in spec["containers"][0]["resources"]["limits"]
        if has_gpu != (group["labels"].get("market") == "spot"):
            yield f"{where}: Ray's label says {group['labels'].get('market')}"
        tolerated = {toleration["key"] for toleration in spec.get("tolerations", ())}
        pod = Pod(where=where, role="worker", spec=spec, labels={})
        wanted = {one["key"]: one["values"] for term in _terms(pod) for one in term if one["operator"] == "In"}
        if has_gpu and not {"nvidia.com/gpu", "cloud.google.com/gke-spot"} <= tolerated:
            yield f"{where}: tolerates only {tolerated}"
        if has_gpu and wanted != {key: [value] for key, value in SPOT.items()}:
            yield f"{where}: is not bound to spot"
        if not has_gpu and (tolerated or wanted):
            yield f"{where}: is put on spot"


def a_shard_may_end(manifests: Sequence[Manifest]) -> Iterator[str]:
    for where, group in groups(manifests):
        spec = group["template"]["spec"]
        hook = spec["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
        waits = int(hook[1]) if hook[:1] == ["sleep"] else 0
        if not 60 <= waits < spec.get("terminationGracePeriodSeconds", 30):
            yield f"{where}: {waits} s before Ray hears of its end, of {spec.get('terminationGracePeriodSeconds')}"


def nodes_are_replaced_not_revived(manifests: Sequence[Manifest]) -> Iterator[str]:
    for pod in pods(manifests):
        if pod.spec.get("restartPolicy") != "Never":
            yield f"{pod.where}: restartPolicy {pod.spec.get('restartPolicy')}"


# Jobs and schedules


def jobs_end(manifests: Sequence[Manifest]) -> Iterator[str]:
    for name, job in jobs(manifests):
        if job.get("shutdownAfterJobFinishes") is not True:
            yield f"{name}: its cluster stays when it has ended"
        if not 0 <= job.get("ttlSecondsAfterFinished", 0) <= 3600:
            yield f"{name}: its head stays for longer than an hour"
        if not 0 < job.get("activeDeadlineSeconds", 0) <= 86400:
            yield f"{name}: may run for ever"
        if not 0 <= job.get("backoffLimit", 0) <= 3:
            yield f"{name}: backoffLimit {job['backoffLimit']}"


def jobs_are_what_kuberay_knows(manifests: Sequence[Manifest]) -> Iterator[str]:
    for name, job in jobs(manifests):
        mode = job.get("submissionMode", "K8sJobMode")
        if mode not in MODES:
            yield f"{name}: KubeRay knows no submissionMode {mode!r}"
        if mode == "SidecarMode" and ("submitterPodTemplate" in job or "submitterConfig" in job):
            yield f"{name}: a sidecar has no template of its own"
        if ("rayClusterSpec" in job) == bool(job.get("clusterSelector")):
            yield f"{name}: either a cluster of its own or one that is there"
        if not re.match(r"rayscan [a-z]+ --config /etc/rayscan/[\w-]+\.toml( |$)", job["entrypoint"]):
            yield f"{name}: starts {job['entrypoint']!r}"
    for manifest in of_kind(manifests, "RayJob"):
        if len(manifest["metadata"]["name"]) > LONGEST_NAME - len("-2"):
            yield f"{name_of(manifest)}: a name too long for KubeRay"


def nights_do_not_overlap(manifests: Sequence[Manifest]) -> Iterator[str]:
    for manifest in of_kind(manifests, "CronJob"):
        spec = manifest["spec"]
        if spec.get("concurrencyPolicy") != "Forbid":
            yield f"{name_of(manifest)}: two nights at a time"
        if not 0 < spec.get("startingDeadlineSeconds", 0) < 86400:
            yield f"{name_of(manifest)}: a start that was missed is never made up for, or always"
        if not 0 < spec["jobTemplate"]["spec"].get("activeDeadlineSeconds", 0) < 86400:
            yield f"{name_of(manifest)}: one that hangs forbids all others"
        if not spec.get("successfulJobsHistoryLimit") or not spec.get("failedJobsHistoryLimit"):
            yield f"{name_of(manifest)}: nobody can look at the last night"
        deadline = spec["jobTemplate"]["spec"].get("activeDeadlineSeconds", 0)
        tries = 1 + spec["jobTemplate"]["spec"].get("backoffLimit", 6)
        if any(tries * job.get("activeDeadlineSeconds", 0) > deadline for _, job in jobs(manifests)):
            yield f"{name_of(manifest)}: its deadline cuts the last of {tries} tries"


def nights_have_a_clock(manifests: Sequence[Manifest]) -> Iterator[str]:
    for manifest in of_kind(manifests, "CronJob", "RayCronJob"):
        spec = manifest["spec"]
        if spec.get("timeZone") not in zoneinfo.available_timezones():
            yield f"{name_of(manifest)}: time zone {spec.get('timeZone')!r}"
        if not re.fullmatch(r"(\S+ ){4}\S+", spec["schedule"]) or "TZ=" in spec["schedule"]:
            yield f"{name_of(manifest)}: schedule {spec['schedule']!r}"


def wrong_input_is_not_repeated(manifests: Sequence[Manifest]) -> Iterator[str]:
    for manifest in of_kind(manifests, "CronJob"):
        job = manifest["spec"]["jobTemplate"]["spec"]
        rules = job.get("podFailurePolicy", {}).get("rules", [])
        fatal = [rule["onExitCodes"] for rule in rules if rule["action"] == "FailJob" and "onExitCodes" in rule]
        name = job["template"]["spec"]["containers"][0]["name"]
        if {"containerName": name, "operator": "In", "values": [2, 130]} not in fatal:
            yield f"{name_of(manifest)}: repeats what no repetition mends"
        if {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]} not in rules:
            yield f"{name_of(manifest)}: a drained node counts as a try"


def the_pattern_sleeps(manifests: Sequence[Manifest]) -> Iterator[str]:
    """The RayJob that a CronJob copies starts no cluster of its own, and is the one that the launcher asks for."""
    patterns = {manifest["metadata"]["name"]: manifest["spec"] for manifest in of_kind(manifests, "RayJob")}
    for manifest in of_kind(manifests, "CronJob"):
        command = manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["command"]
        if command[:3] != ["python", "-m", "cluster.launch"] or command[3] not in patterns:
            yield f"{name_of(manifest)}: launches {command[3:]}, and there is {set(patterns)}"
        elif patterns[command[3]].get("suspend") is not True:
            yield f"{name_of(manifest)}: its pattern runs"


CHECKS: tuple[Check, ...] = (
    images_have_a_version,
    nobody_is_root,
    nobody_has_rights,
    what_is_written_has_a_place,
    no_secret_in_clear,
    the_token_is_asked_for,
    identities_are_apart,
    rights_are_the_least,
    nothing_is_open,
    policies_find_their_pods,
    workers_reach_little,
    the_namespace_is_restricted,
    memory_is_kept,
    the_head_does_no_work,
    drivers_stay_off_spot,
    groups_start_from_nothing,
    gpus_are_on_spot,
    a_shard_may_end,
    nodes_are_replaced_not_revived,
    jobs_end,
    jobs_are_what_kuberay_knows,
    nights_do_not_overlap,
    nights_have_a_clock,
    wrong_input_is_not_repeated,
    the_pattern_sleeps,
)


def _clear_in_files(manifests: Sequence[Manifest]) -> Iterator[str]:
    for manifest in of_kind(manifests, "Secret"):
        yield f"{name_of(manifest)}: a secret in a file"
    for manifest in of_kind(manifests, "ConfigMap"):
        for key, value in manifest.get("data", {}).items():
            if SECRET.search(key) or re.search(r"://[^/\s]*:[^/\s]*@", value):
                yield f"{name_of(manifest)}: {key} holds a secret"


def _terms(pod: Pod) -> list[list[dict[str, Any]]]:
    required = (
        pod.spec.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
    )
    return [term["matchExpressions"] for term in required.get("nodeSelectorTerms", ())]


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        one["operator"] == "In" and labels.get(one["key"]) in one["values"]
        for one in selector.get("matchExpressions", ())
    )


def _bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([KMGT]i)?", quantity).groups()  # type: ignore[union-attr]
    return int(number) * int(1024 ** ("KMGT".index(unit[0]) + 1 if unit else 0))
