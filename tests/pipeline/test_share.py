"""What the README promises of experiments, remotes and repeated runs."""

import subprocess
from pathlib import Path

import pytest
from conftest import Pipeline, clone

COMMIT = ("-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-q", "-m", "all")


def commit(pipe: Pipeline) -> None:
    assert pipe.sh("git", "add", "-A").returncode == 0
    done = pipe.sh("git", *COMMIT)
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.slow
def test_two_clean_runs_agree_to_the_byte(warm: Pipeline, tmp_path: Path) -> None:
    other = clone(tmp_path / "another" / "place")
    other.repro()
    for lock in ("dvc.lock", "models/dvc.lock", "data/dvc.lock"):
        assert (other.root / lock).read_bytes() == (warm.root / lock).read_bytes()


@pytest.mark.slow
def test_push_clone_pull_repro(pipe: Pipeline, tmp_path: Path) -> None:
    assert pipe.sh("dvc", "remote", "add", "-d", "store", str(tmp_path / "store")).returncode == 0
    commit(pipe)
    assert pipe.sh("dvc", "push").returncode == 0
    there = tmp_path / "there"
    subprocess.run(["git", "clone", "-q", pipe.root, there], check=True)
    second = Pipeline(there)
    pulled = second.sh("dvc", "pull")
    assert pulled.returncode == 0, pulled.stderr
    assert second.repro() == []
    assert (there / "results/report.html").read_bytes() == (pipe.root / "results/report.html").read_bytes()


@pytest.mark.slow
def test_experiments(pipe: Pipeline) -> None:
    commit(pipe)
    done = pipe.sh("dvc", "exp", "run", "-S", "report.pictures=1")
    assert done.returncode == 0, done.stderr
    assert "report" in done.stdout + done.stderr
    for seed in (1, 2):
        queued = pipe.sh("dvc", "exp", "run", "-S", f"report.exemplars={seed}", "--queue")
        assert queued.returncode == 0, queued.stderr
    ran = pipe.sh("dvc", "exp", "run", "--run-all")
    assert ran.returncode == 0, ran.stderr
    shown = pipe.sh("dvc", "exp", "show", "--json").stdout
    assert shown.count('"miou"') >= 3
