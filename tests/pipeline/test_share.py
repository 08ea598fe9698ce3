"""What the README promises of experiments, remotes and repeated runs."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Pipeline, clone, fork_server
from pages import commands

COMMIT = ("-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-q", "-m", "all")


def commit(pipe: Pipeline) -> None:
    assert pipe.sh("git", "add", "-A").returncode == 0
    done = pipe.sh("git", *COMMIT)
    assert done.returncode == 0, done.stderr + done.stdout


def same(one: Pipeline, other: Pipeline) -> None:
    """The locks, which have the hashes of all artefacts, and the metrics agree to the byte."""
    locks = [file.relative_to(one.root) for file in one.root.rglob("dvc.lock")]
    assert len(locks) == 3
    for file in [*locks, *(p.relative_to(one.root) for p in one.root.glob("results/**/*.json"))]:
        assert (other.root / file).read_bytes() == (one.root / file).read_bytes(), file


def test_two_clean_runs_agree_to_the_byte(warm: Pipeline, tmp_path: Path) -> None:
    """Of another fork server, which has another order of sets (PYTHONHASHSEED)."""
    other = clone(tmp_path / "another" / "place", fork_server(tmp_path / "forks"))
    assert other.repro()
    same(warm, other)


@pytest.mark.slow  # each of its stages starts torch
def test_the_real_commands_agree_to_the_byte(warm: Pipeline, tmp_path: Path) -> None:
    """`dvc repro` and `python`, as users have them, and the fork server's."""
    other = clone(tmp_path / "real")
    assert sorted(other.repro()) == sorted(other.stages())
    same(warm, other)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an S3-compatible server on this machine that has a bucket `unseg`, and keys that it takes."""
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "test")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        for _ in range(600):
            try:
                urllib.request.urlopen(urllib.request.Request(f"{address}/unseg", method="PUT")).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address
        server.terminate()


def lines(word: str, count: int) -> list[str]:
    """README's lines on experiments, or on remotes."""
    found = [line for line in commands("README.md", "Change, sweep, share") if word in line]
    assert len(found) == count, found
    return found


def test_push_clone_pull_repro(pipe: Pipeline, tmp_path: Path) -> None:
    add, push = lines("dvc remote", 1)[0], lines("dvc push", 1)[0]
    assert pipe.sh("bash", "-ec", add.replace("/mnt/share", str(tmp_path / "share"))).returncode == 0
    commit(pipe)
    assert pipe.sh("bash", "-ec", push).returncode == 0
    clone_and_go = lines("git clone", 1)[0].replace("...", f"-q {pipe.root} unseg")
    pulled = subprocess.run(["bash", "-ec", clone_and_go], cwd=tmp_path, env=pipe.env, capture_output=True, text=True)
    assert pulled.returncode == 0, pulled.stderr
    assert "up to date" in pulled.stdout
    there = tmp_path / "unseg"
    assert (there / "results/report.html").read_bytes() == (pipe.root / "results/report.html").read_bytes()


def test_the_run_cache_goes_through_s3(pipe: Pipeline, tmp_path: Path, bucket: str) -> None:
    pipe.env |= {key: os.environ[key] for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    assert pipe.sh("dvc", "remote", "add", "-d", "store", "s3://unseg/store").returncode == 0
    assert pipe.sh("dvc", "remote", "modify", "store", "endpointurl", bucket).returncode == 0
    commit(pipe)
    pushed = pipe.sh("dvc", "push", "--run-cache")
    assert pushed.returncode == 0, pushed.stderr
    subprocess.run(["git", "clone", "-q", pipe.root, tmp_path / "there"], check=True)
    second = Pipeline(tmp_path / "there")
    second.env = pipe.env
    pulled = second.sh("dvc", "pull", "--run-cache")
    assert pulled.returncode == 0, pulled.stderr
    for lock in second.root.rglob("dvc.lock"):
        lock.unlink()
    # The run-cache knows what each stage made of the same inputs, but for metrics, which lie in Git and not in the cache.
    assert all(stage.startswith("evaluate_") for stage in second.repro())


def test_experiments(pipe: Pipeline) -> None:
    """README's lines; the report's params take the place of mining's, whose change would rerun everything."""
    commit(pipe)
    outputs = ""
    for line in lines("dvc exp", 3):
        cheap = line.replace("mine.keep=0.1,0.2,0.4", "report.exemplars=1,3").replace("mine.keep=0.3", "report.pictures=1")
        assert "mine" not in cheap
        done = pipe.sh("bash", "-ec", cheap)
        assert done.returncode == 0, (line, done.stderr)
        outputs += done.stdout + done.stderr
    assert "Running stage 'report'" in outputs
    shown = pipe.sh("dvc", "exp", "show", "--json").stdout
    assert shown.count('"miou"') >= 3
