"""The documents: short where they must be, complete where they list, and naming only what is there."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cluster.cli import VERBS

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PACKAGES = ("models", "pipelines", "tuning", "cluster")
GUIDES = [ROOT / name / "README.md" for name in (*PACKAGES, "tests", "tests/benchmarks")]
DOCUMENTS = [README, *GUIDES, *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"))]
EXAMPLES = sorted((ROOT / "cluster" / "examples").glob("*.toml"))

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PATH_IN_CODE = re.compile(r"`([\w./*-]+\.(?:py|md|yaml|svg)|[\w./-]+/[\w*-]+\.(?:toml|txt))`")


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


def prose(document: Path) -> str:
    """The text without its blocks of code, in which a # is a comment and no heading."""
    return re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)


def section(document: Path, heading: str) -> str:
    text = prose(document)
    assert f"\n## {heading}\n" in text, f"{name_of(document)} has no section '{heading}'"
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def anchors(document: Path) -> set[str]:
    """What a link may name after the #, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.+)$", prose(document), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_is_short_and_begins_with_what_and_how() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= 155
    beginning = "\n".join(lines[:20])
    assert "pneumonia in chest X-rays" in beginning
    assert "not a diagnosis" in beginning
    assert "make demo" in beginning


def test_each_fault_of_the_runbook_is_provoked_by_a_test_that_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(?:\w+::)?(\w+)`", (ROOT / "cluster" / "RUNBOOK.md").read_text())
    assert len(named) >= 20
    assert [test for path, test in named if f"def {test}(" not in (ROOT / path).read_text()] == []


def test_every_verb_stands_in_the_readme() -> None:
    table = section(README, "The verbs")
    assert [verb.__name__ for verb in VERBS if not re.search(rf"`rayscan {verb.__name__}\b", table)] == []


def subpackages(package: str) -> set[str]:
    """The packages directly below one of ours, and its folders of examples."""
    folders = [folder for folder in (ROOT / package).iterdir() if folder.is_dir()]
    return {folder.name for folder in folders if (folder / "__init__.py").exists() or folder.name == "examples"}


def test_the_tree_in_the_readme_is_the_tree() -> None:
    told: dict[str, set[str]] = {}
    package = ""
    for indent, name in re.findall(r"^    ( *)([\w-]+)/  ", section(README, "The tree"), flags=re.MULTILINE):
        if indent:
            told[package].add(name)
        else:
            package = name
            told[package] = set()
    assert told == {name: subpackages(name) for name in PACKAGES} | {"tests": set()}


@pytest.mark.parametrize("document", GUIDES, ids=name_of)
def test_each_guide_begins_with_a_mental_model_and_a_glossary(document: Path) -> None:
    sections = re.findall(r"^## (.+)$", prose(document), flags=re.MULTILINE)
    assert sections[:2] == ["The mental model", "Glossary"]
    assert re.findall(r"^(\d)\. ", section(document, "The mental model"), flags=re.MULTILINE) == list("12345")
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", section(document, "Glossary"), flags=re.MULTILINE)
    words = [word for word, _ in rows[1:]]
    assert len(words) >= 5
    assert len(set(words)) == len(words)


@pytest.mark.parametrize("document", [ROOT / package / "README.md" for package in PACKAGES[:3]], ids=name_of)
def test_each_guide_lists_its_packages(document: Path) -> None:
    told = re.findall(r"^\| `([\w-]+)/` \|", section(document, "The packages"), flags=re.MULTILINE)
    assert set(told) == subpackages(document.parent.name)


@pytest.mark.parametrize("package", PACKAGES)
def test_each_module_at_the_top_of_a_package_is_named(package: str) -> None:
    """Those inside its own packages say themselves what they are."""
    modules = {path.name for path in (ROOT / package).glob("*.py")} - {"__init__.py"}
    named = set(re.findall(r"`([\w-]+\.py)`", (ROOT / package / "README.md").read_text()))
    assert modules - named == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    def dead() -> Iterator[str]:
        for link in LINK.findall(document.read_text()):
            if "://" in link:
                continue
            path, _, anchor = link.partition("#")
            target = (document.parent / path).resolve() if path else document
            if not target.is_file() or (anchor and anchor not in anchors(target)):
                yield link

    assert list(dead()) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_files_named_in_code_are_there(document: Path) -> None:
    """As a path from the document's folder, or from the root."""
    named = set(PATH_IN_CODE.findall(document.read_text()))
    places = {document.parent, ROOT}
    assert [path for path in sorted(named) if not any(True for place in places for _ in place.glob(path))] == []


def test_figures_of_the_readme_stand_with_their_command() -> None:
    figures = set(re.findall(r"\d[\d,.]*\d|\d", section(README, "Measured").partition("|---|---|")[2]))
    known = set(re.findall(r"\d[\d,.]*\d|\d", (ROOT / "tests" / "benchmarks" / "README.md").read_text()))
    assert figures - known == set()


def test_each_record_of_a_measurement_is_linked() -> None:
    links = set(LINK.findall((ROOT / "tests" / "benchmarks" / "README.md").read_text()))
    results = ROOT / "tests" / "benchmarks" / "results"
    assert {f"results/{record.name}" for record in results.iterdir()} - links == set()


def test_each_measurement_says_whether_it_gates() -> None:
    told = set(re.findall(r"^\| `(test_\w+\.py)` \|", section(GUIDES[-1], "Which gate, which inform"), re.MULTILINE))
    assert told == {path.name for path in GUIDES[-1].parent.glob("test_*.py")}


def test_each_example_is_named_in_a_readme() -> None:
    assert {path.stem for path in EXAMPLES} == {"night", "search", "space", "recipe"}
    text = "".join(document.read_text() for document in [README, *GUIDES])
    assert [path.name for path in EXAMPLES if f"examples/{path.name}" not in text] == []


def test_the_citation_is_complete_and_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert citation["title"] == project["name"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"] == "Apache-2.0"
    assert citation["authors"] == [{"name": "The rayscan authors"}]


def test_the_changelog_has_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_each_overlay_stands_in_the_readme() -> None:
    told = re.findall(
        r"^\| \[(\w+)\]\(deploy/kuberay/overlays/", section(ROOT / "cluster" / "README.md", "On Kubernetes"), re.M
    )
    assert set(told) == {folder.name for folder in (ROOT / "cluster/deploy/kuberay/overlays").iterdir()}


def test_each_folder_that_kubectl_is_given_is_one() -> None:
    given = re.findall(r"kubectl \w+ -k (\S+)", (ROOT / "cluster" / "README.md").read_text())
    assert given
    assert [folder for folder in given if not (ROOT / folder / "kustomization.yaml").is_file()] == []
