"""CrOC's pre-training killed and resumed, and in two processes (croc_processes.py runs them)."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).with_name("croc_processes.py")
STEPS, KILLED_AT = 8, 5


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("croc")
    env = {
        **os.environ,
        "UNSEG_WORKERS": "0",
        "UNSEG_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(SCRIPT.parents[2]),
    }
    done = subprocess.run([sys.executable, SCRIPT, folder], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ends = json.loads((folder / "ends.json").read_text())
    assert ends == {"one": 0, "rank 0": 0, "rank 1": 0, "killed": -signal.SIGKILL, "resumed": 0}, done.stderr
    assert not (folder / "killed.pt").exists()
    loaded = {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in ("one", "two", "resumed")}
    return {**loaded, "folder": folder}


def test_a_killed_run_ends_with_the_bytes_of_an_unbroken_one(runs: dict[str, Any]) -> None:
    assert runs["resumed"]["resumed"] == KILLED_AT  # steps that it does not repeat; two steps are an epoch
    assert runs["resumed"]["values"] == runs["one"]["values"]
    assert runs["resumed"]["weights"].keys() == runs["one"]["weights"].keys()
    for name, tensor in runs["resumed"]["weights"].items():
        assert tensor.numpy().tobytes() == runs["one"]["weights"][name].numpy().tobytes(), name


def test_two_processes_learn_as_one_with_the_same_batches(runs: dict[str, Any]) -> None:
    one, two = (runs[name]["values"] for name in ("one", "two"))
    assert len(one) == len(two) == STEPS
    for step, (a, b) in enumerate(zip(one, two, strict=True)):
        for name in ("loss", "cls", "centroid", "clusters"):
            assert b[name] == pytest.approx(a[name], abs=1e-4), (step, name)
    assert max(a["loss"] for a in one) > min(a["loss"] for a in one) + 0.01  # the loss changes
    for name, tensor in runs["one"]["weights"].items():
        assert torch.allclose(tensor, runs["two"]["weights"][name], rtol=0, atol=1e-3), name


def test_curves_of_two_processes_and_of_a_killed_run(runs: dict[str, Any]) -> None:
    """The first process writes them; the resumed run continues those of the killed one."""
    assert not (runs["folder"] / "logs/one").exists()
    for name, run in (("two", "two"), ("killed", "resumed")):
        logs = runs["folder"] / "logs" / name
        curves, pictures = factories.curves(logs), factories.logged_pictures(logs)
        for metric in ("loss", "cls", "clusters"):
            want = [(n, pytest.approx(row[metric], rel=1e-5)) for n, row in enumerate(runs[run]["values"], 1)]
            assert curves[metric] == want, (name, metric)
        assert set(pictures) == {f"pictures/{i}.png" for i in (2, 6, 10, 14)}
        (_, first), (step, last) = pictures["pictures/2.png"]
        assert step == STEPS
        assert first.shape == (128, 256, 3)
        assert (first[:, :128] == last[:, :128]).all()  # the photograph
        assert np.abs(first[:, 128:].astype(int) - last[:, 128:]).mean() > 1  # its patch tokens
