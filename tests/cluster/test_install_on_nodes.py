"""`cluster/deploy/install.sh`, which the cluster files run on every node: run for real, with small wheels."""

import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster" / "deploy" / "install.sh"
WHEEL = "rayscan-0.1.0-py3-none-any.whl"


def write_wheel(folder: Path, name: str, version: str, module: str, requires: str = "") -> Path:
    """The smallest wheel that pip installs: one module."""
    folder.mkdir(parents=True, exist_ok=True)
    path, info = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": module,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
    return path


@dataclass(frozen=True, kw_only=True)
class Node:
    """A home folder with what the file mounts bring."""

    home: Path
    index: str
    """Of a package index with `lens` 1.0 and 1.1."""

    @property
    def venv(self) -> Path:
        return self.home / "venv"

    @property
    def stamp(self) -> Path:
        return self.venv / ".rayscan-installed"

    def bring(self, code: str = "BORN = 1", lens: str = "1.0") -> None:
        """Put a wheel of this code, and constraints that pin this `lens`, where Ray would."""
        write_wheel(self.home, "rayscan", "0.1.0", code, "Requires-Dist: lens\n")
        (self.home / "constraints.txt").write_text(f"lens=={lens}\n")

    def install(self, *index: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "PYTHON": sys.executable}
        return subprocess.run(
            [
                "/bin/sh",
                str(SCRIPT),
                str(self.home / WHEEL),
                str(self.home / "constraints.txt"),
                str(self.venv),
                *index,
            ],
            env=environment | {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    def sees(self) -> str:
        """What a process of this node imports."""
        code = "import lens, rayscan; print(rayscan.BORN, lens.VERSION)"
        command = [self.venv / "bin" / "python", "-I", "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def files(self) -> dict[str, int]:
        """Every file of the environment, with the time it was last written; none of those Python makes by itself."""
        found = (file for file in self.venv.rglob("*") if "__pycache__" not in file.parts)
        return {str(file): file.lstat().st_mtime_ns for file in found}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    index = tmp_path / "index" / "lens"
    wheels = [write_wheel(index, "lens", version, f"VERSION = {version!r}") for version in ("1.0", "1.1")]
    (index / "index.html").write_text("".join(f'<a href="{wheel.name}">{wheel.name}</a>\n' for wheel in wheels))
    node = Node(home=tmp_path / "home", index=index.parent.as_uri())
    node.home.mkdir()
    node.bring()
    return node


@pytest.mark.chaos
def test_the_life_of_a_node(node: Node) -> None:
    """One test, because an environment is slow to make: each step starts from where the one before ended."""
    first = node.install(node.index)
    assert first.returncode == 0, first.stderr
    assert node.sees() == "1 1.0"

    before = node.files()
    second = node.install()
    assert (second.returncode, second.stderr) == (0, "")
    assert second.stdout.startswith("nothing to install")
    assert node.files() == before

    node.bring(code="BORN = 2")  # of the same version
    newer_code = node.install()
    assert newer_code.returncode == 0, newer_code.stderr
    assert node.sees() == "2 1.0"

    node.bring(code="BORN = 2", lens="1.1")
    refused = node.install()
    assert refused.returncode == 1, "libraries came from somewhere, though no index was given"
    assert "lacks libraries, and no index is given" in refused.stderr.splitlines()[-1]
    assert not node.stamp.exists(), "half an installation must not pass for a whole one"
    newer_library = node.install(node.index)
    assert newer_library.returncode == 0, newer_library.stderr
    assert node.sees() == "2 1.1"


def test_what_is_missing_is_told_in_a_line(node: Node) -> None:
    (node.home / "constraints.txt").unlink()
    refused = node.install()
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "constraints.txt is missing" in refused.stderr
