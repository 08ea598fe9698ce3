"""Stages in two processes, mine killed and resumed (stage_processes.py runs them); a process that dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.processes import free_port
from unseg.engine import distributed

SCRIPT = Path(__file__).with_name("stage_processes.py")
IMAGES, KILLED_AT, BATCH = 10, 5, 2
ENV = {**os.environ, "UNSEG_WORKERS": "0", "UNSEG_DEVICE": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    done = subprocess.run([sys.executable, SCRIPT, folder], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ends = json.loads((folder / "ends.json").read_text())
    assert ends.pop("killed") == -signal.SIGKILL, done.stderr
    assert set(ends.values()) == {0}, (ends, done.stderr)
    return folder


@pytest.mark.parametrize("name", ["masks.json", "cls_tokens.npz", "detections.json", "labels.zip", "predictions.zip"])
def test_two_processes_give_the_results_of_one(folder: Path, name: str) -> None:
    one, two = (folder / part / name for part in ("one", "two"))
    assert one.stat().st_size > 200
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("name", ["detector", "segmenter", "student"])
def test_two_processes_learn_like_one(folder: Path, name: str) -> None:
    one, two = (np.loadtxt(folder / part / f"{name}.tsv", skiprows=1) for part in ("one", "two"))  # [steps, metrics]
    assert len(one) == 6
    assert np.ptp(one[:, 1]) > 0.01  # the loss changes
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-4)
    if name == "segmenter":  # six digits of a loss do not check a gradient
        first, second = (load_file(folder / part / "gradients.safetensors") for part in ("one", "two"))
        for key, tensor in first.items():
            np.testing.assert_allclose(second[key], tensor, rtol=0, atol=1e-10 * np.abs(tensor).max() + 1e-14, err_msg=key)
    first, second = (load_file(folder / part / f"{name}.safetensors") for part in ("one", "two"))
    for key, tensor in first.items():  # the running statistics of batch norm among them
        np.testing.assert_allclose(second[key], tensor, rtol=0, atol=2e-3, err_msg=key)


def test_a_killed_extraction_resumes_by_batches(folder: Path) -> None:
    assert (folder / "again/masks.json").read_bytes() == (folder / "one/masks.json").read_bytes()
    redone = json.loads((folder / "again.json").read_text())
    assert IMAGES - KILLED_AT <= len(redone) < IMAGES - KILLED_AT + BATCH  # at most the batch in which it died
    assert not list((folder / "scratch-again").rglob("*.sqlite"))


MINE = [
    "stages.mine",
    "--index",
    "images.json",
    "--images",
    "photos",
    "--weights",
    "models/fresh",
    "--output",
    "nodes/masks.json",
]


@pytest.mark.slow  # starts torch five times
def test_two_nodes_give_the_results_of_one_process(folder: Path) -> None:
    meet = f"--nnodes 2 --nproc-per-node 1 --master-addr 127.0.0.1 --master-port {free_port()}"
    node = f"{sys.executable} -m torch.distributed.run {meet}"
    launcher = folder / "two nodes.sh"  # as srun would, on one machine
    launcher.write_text(f'{node} --node-rank 1 "$@" & other=$!\n{node} --node-rank 0 "$@" && wait $other\n')
    words = ["-m", "unseg.engine.distributed", *MINE]
    env = ENV | {"UNSEG_LAUNCHER": f"sh '{launcher}'", "UNSEG_SCRATCH": "scratch-nodes"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("mine ") >= 2  # both printed progress
    assert (folder / "nodes/masks.json").read_bytes() == (folder / "one/masks.json").read_bytes()


def test_the_launcher_gets_torchruns_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = tmp_path / "the nodes.sh"
    launcher.write_text(f"""printf '%s\\n' "$@" > '{tmp_path / "words"}'\n""")
    monkeypatch.setenv("UNSEG_LAUNCHER", f"sh '{launcher}' --nnodes 2")
    monkeypatch.setattr(sys, "argv", ["unseg.engine.distributed", *MINE])
    distributed.main()
    assert (tmp_path / "words").read_text().split("\n")[:-1] == ["--nnodes", "2", "-m", *MINE]


@pytest.mark.parametrize(
    ("bad", "message"), [("false", "(false) ended with status 1"), ("no-such 1", "not a command"), ("'", "not a command")]
)
def test_a_launcher_that_fails_is_named(bad: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSEG_LAUNCHER", bad)
    monkeypatch.setattr(sys, "argv", ["unseg.engine.distributed", *MINE])
    with pytest.raises(SystemExit) as end:
        distributed.main()
    assert str(end.value).startswith("error: ")
    assert message in str(end.value)
    assert "\n" not in str(end.value)


DYING = """
import os, pathlib, signal, time
{start}
for step in range(10**6):
    if step == 3 and os.environ["RANK"] == "1":
        pathlib.Path({died!r}).write_text(str(time.monotonic()))
        os.kill(os.getpid(), signal.SIGKILL)
    {work}
"""


def dies(tmp_path: Path, start: str, work: str) -> None:
    """Start a module whose second process kills itself; both processes must end."""
    (tmp_path / "dying.py").write_text(DYING.format(start=start, work=work, died=str(tmp_path / "died")))
    env = ENV | {"UNSEG_PROCESSES": "2", "PYTHONPATH": f"{tmp_path}{os.pathsep}{SCRIPT.parents[2]}"}
    done = subprocess.run(
        [sys.executable, "-m", "unseg.engine.distributed", "dying"], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: dying: process ")
    assert 'Traceback (most recent call last):\n  File "<frozen runpy>"' not in done.stderr
    assert time.monotonic() - float((tmp_path / "died").read_text()) < 60


def test_a_dead_process_ends_a_sleeping_one(tmp_path: Path) -> None:
    dies(tmp_path, start="", work="time.sleep(0.1)")


@pytest.mark.slow  # both processes import torch
def test_a_dead_process_ends_one_in_a_collective(tmp_path: Path) -> None:
    start = "import torch\nfrom unseg.engine import distributed\ndistributed.start()"
    dies(tmp_path, start, work="distributed.all_reduce_mean(torch.ones(3))")
