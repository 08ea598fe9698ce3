"""What `python -m build` makes: the wheel has the package and the files of a project, the sdist what the wheel is built of."""

import email
import subprocess
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
NOT_OF_A_PROJECT = (".ci/", ".github/", "benchmarks/", "docs/", "tests/", "unseg/")
FOR_THE_BUILD = {"pyproject.toml", "hatch_build.py", "requirements.txt", "requirements-dev.txt"}
DOCS = {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"}


def in_git() -> set[str]:
    """The files that Git knows, and new ones in the folders that the build takes as a whole."""
    words = "git ls-files; git ls-files --others --exclude-standard unseg stages profiles docs"
    names = subprocess.run(["bash", "-ec", words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {name for name in names if (ROOT / name).is_file() and not name.endswith("dvc.lock")}


def of_a_project() -> set[str]:
    """All files of the repository that are neither code of unseg nor for its developers: DVC may need them."""
    return {name for name in in_git() - FOR_THE_BUILD - DOCS if not name.startswith(NOT_OF_A_PROJECT)}


@pytest.fixture
def wheel(built: Path) -> Iterator[zipfile.ZipFile]:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        yield file


def requirements(name: str) -> set[str]:
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return {normal(line) for line in lines if line and not line.startswith("-r")}


def normal(text: str) -> str:
    """A requirement, however it is written; without the marker of its extra."""
    need = Requirement(text)
    extras = f"[{','.join(sorted(need.extras))}]" if need.extras else ""
    return f"{need.name.lower().replace('_', '-').replace('.', '-')}{extras}{','.join(sorted(map(str, need.specifier)))}"


def test_the_wheel_has_the_package_and_the_files_of_a_project(wheel: zipfile.ZipFile) -> None:
    want = {name: name for name in in_git() if name.startswith("unseg/")}
    want |= {f"unseg/project/{name}": name for name in of_a_project()}
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == set(want)
    assert [name for name in names if wheel.read(name) != (ROOT / want[name]).read_bytes()] == []


def test_the_sdist_has_what_the_wheel_is_built_of_and_no_data(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as file:
        names = {name.split("/", 1)[1] for name in file.getnames() if "/" in name}
    folders = {name for name in in_git() if name.startswith(("unseg/", "docs/"))}
    assert names == of_a_project() | FOR_THE_BUILD | DOCS | folders | {"PKG-INFO"}


def test_the_requirements_are_those_of_the_files(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    about = email.message_from_bytes(wheel.read(name))
    needs = [(text, Requirement(text)) for text in about.get_all("Requires-Dist") or []]
    extras = {
        e: {normal(t) for t, n in needs if f"extra == '{e}'" in t.replace('"', "'")}
        for e in about.get_all("Provides-Extra") or []
    }
    assert {normal(text) for text, _ in needs if "extra ==" not in text} == requirements("requirements.txt")
    assert extras["dev"] == requirements("requirements-dev.txt")
    assert {"crf", "onnx", "dev"} <= set(extras)
    assert extras["onnx"] <= extras["dev"]  # a version is written twice, and is the same
    assert extras["crf"] <= extras["dev"]
    (entry,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert "unseg = unseg.serving.cli.main:main" in wheel.read(entry).decode()


def test_the_build_takes_a_tool_that_the_tests_have() -> None:
    (tool,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert normal(tool) in requirements("requirements-dev.txt")
