"""unseg init: what it lays out, what an upgrade renews, and what it refuses."""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from unseg.core.console import InputError
from unseg.serving import project
from unseg.serving.cli.main import main

ROOT = Path(__file__).parents[2]
GRAPHS = ("dvc.yaml", "data/dvc.yaml", "models/dvc.yaml", "evaluations/dvc.yaml")


def installed(site: Path) -> Path:
    """unseg as an installed wheel has it: the package, and in it the files of a project."""
    shutil.copytree(ROOT / "unseg", site / "unseg", ignore=shutil.ignore_patterns("__pycache__"))
    for name in project.template():
        path = site / "unseg/project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, path)
    return site / "unseg"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package that a test may change."""
    package = installed(tmp_path / "site-packages")
    monkeypatch.setattr(project, "PACKAGE", package)
    monkeypatch.chdir(tmp_path)
    return package


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def deps(root: Path) -> dict[str, list[str]]:
    """The deps of each stage, by its name."""
    stages = {name: s for g in GRAPHS for name, s in yaml.safe_load((root / g).read_text())["stages"].items()}
    return {name: stage.get("do", stage)["deps"] for name, stage in stages.items()}


def test_a_clone_and_a_wheel_lay_out_the_same(tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project.create(tmp_path / "of the wheel")
    monkeypatch.setattr(project, "PACKAGE", ROOT / "unseg")
    main(["init", "of the clone"])
    assert files(tmp_path / "of the wheel") == files(tmp_path / "of the clone")


def test_init_lays_out_the_repository_s_files(tmp_path: Path, package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my project").mkdir()
    main(["init", "my project"])
    assert "cd 'my project'" in capsys.readouterr().out
    root = tmp_path / "my project"
    assert deps(root) == {name: [re.sub(r"^unseg/", ".unseg/", dep) for dep in found] for name, found in deps(ROOT).items()}
    for dep in {dep for found in deps(root).values() for dep in found if dep.startswith((".unseg/", "stages/"))}:
        assert (root / dep).read_bytes().count(b"\n") == 1 or dep.startswith("stages/"), dep
    got = files(root)
    assert (root / ".dvc/config").read_bytes() == (ROOT / ".dvc/config").read_bytes() + b"    no_scm = true\n"
    laid = {name for name in got if not name.startswith(".unseg/") and name not in (*GRAPHS, ".dvc/config")}
    assert {"params.yaml", "clusters.yaml", "profiles/base.yaml", "stages/mine.py", "models/fresh", ".dvcignore"} <= laid
    assert [name for name in laid if got[name] != (ROOT / name).read_bytes()] == []
    for line in (root / ".unseg/files").read_text().splitlines():  # as sha256sum reads it
        digest, name = line.split("  ")
        assert hashlib.sha256((root / name).read_bytes()).hexdigest() == digest


def test_dvc_knows_the_stages_with_git_and_without(tmp_path: Path, package: Path) -> None:
    subprocess.run(["git", "init", "-q", "with"], check=True)
    for name in ("with/sub", "without"):
        main(["init", name])
        assert ("no_scm" in Path(name, ".dvc/config").read_text()) == (name == "without")
        words = [sys.executable, "-m", "dvc", "repro", "--dry", "data/dvc.yaml:demo"]
        done = subprocess.run(words, cwd=name, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert re.findall(r"Running stage '(.*)'", done.stdout) == ["data/dvc.yaml:demo"]


def test_a_git_repository_may_be_there(tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new/.git").mkdir(parents=True)
    monkeypatch.chdir("new")
    main(["init"])
    assert Path("dvc.yaml").exists()


def test_init_refuses_in_one_line_and_writes_nothing(tmp_path: Path, package: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/photo.jpg").touch()
    main(["init", "project"])
    before = files(tmp_path)
    for words, message in (
        (["file"], "file is not empty; name a new folder"),
        (["full"], "full is not empty; name a new folder"),
        (["project"], "project is a project already; `unseg init --upgrade project` renews"),
        (["full", "--upgrade"], r"full/\.unseg/files: no such file; name a project of `unseg init`"),
        (["new", "--force"], "--force is for --upgrade"),
    ):
        with pytest.raises(SystemExit, match=message) as error:
            main(["init", *words])
        assert "\n" not in str(error.value)
    assert files(tmp_path) == before


def test_a_change_of_the_code_changes_its_folder_alone(tmp_path: Path, package: Path) -> None:
    root = tmp_path / "p"
    project.create(root)
    assert project.refresh_code(root) == []
    (package / "core/__pycache__").mkdir()
    (package / "core/__pycache__/masks.cpython-311.pyc").touch()
    assert project.refresh_code(root) == []
    before = files(root)
    (package / "mining/affinity.py").write_text((package / "mining/affinity.py").read_text() + "#")
    (package / "report/templates/page.html.j2").rename(package / "report/templates/other.html.j2")
    assert project.refresh_code(root) == ["mining", "report"]
    after = files(root)
    assert {name for name in after if after[name] != before[name]} == {".unseg/mining", ".unseg/report"}
    assert not project.is_outdated(root)


def test_an_upgrade_leaves_alone_what_is_the_user_s(tmp_path: Path, package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, there = tmp_path / "p", package / "project"
    project.create(root)
    for name in ("params.yaml", "clusters.yaml", ".dvc/config", "data/images.json", "profiles/mine.yaml"):
        (root / name).write_text("mine: 1\n")
    (there / "stages/mine.py").write_text("new\n")
    (there / "stages/regroup.py").unlink()
    (there / "stages/more.py").write_text("more\n")
    (there / "params.yaml").write_text("theirs: 1\n")
    assert project.is_outdated(root)
    main(["init", "--upgrade", "p"])
    assert {"stages/mine.py", "stages/regroup.py", "stages/more.py"} <= set(capsys.readouterr().out.splitlines())
    assert not project.is_outdated(root)
    assert (root / "stages/mine.py").read_text() == "new\n"
    assert not (root / "stages/regroup.py").exists()
    for name in ("params.yaml", "clusters.yaml", ".dvc/config", "data/images.json", "profiles/mine.yaml"):
        assert (root / name).read_text() == "mine: 1\n", name
    main(["init", "--upgrade", "p"])
    assert "up to date" in capsys.readouterr().out


def test_an_upgrade_overwrites_no_edits(tmp_path: Path, package: Path) -> None:
    root = tmp_path / "p"
    project.create(root)
    (root / "stages/mine.py").write_text("edited\n")
    (root / "profiles/of_mine.yaml").write_text("a: 1\n")
    (package / "project/stages/embed.py").write_text("new\n")
    (package / "project/profiles/of_mine.yaml").write_text("theirs\n")  # a name that was mine first
    before = files(root)
    with pytest.raises(SystemExit, match=r"stages/mine\.py, profiles/of_mine\.yaml: edits of yours; commit or copy them"):
        main(["init", "--upgrade", "p"])
    assert files(root) == before
    main(["init", "--upgrade", "--force", "p"])
    assert (root / "stages/mine.py").read_bytes() == (ROOT / "stages/mine.py").read_bytes()
    assert (root / "stages/embed.py").read_text() == "new\n"


def test_a_record_never_names_files_elsewhere(tmp_path: Path, package: Path) -> None:
    root, other = tmp_path / "p", tmp_path / "other"
    project.create(root)
    other.write_text("mine")
    with (root / ".unseg/files").open("a") as record:
        record.write(f"{hashlib.sha256(b'mine').hexdigest()}  ../other\n")
    with pytest.raises(InputError, match=r"names \.\./other, which is outside the project"):
        project.upgrade(root, force=True)
    assert other.exists()
