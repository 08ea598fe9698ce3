"""Test workers share the cores: one thread each (two torch processes of two threads thrash on two cores).

A shell that starts pytest in the background leaves SIGINT ignored, and the stages that tests interrupt would inherit that.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def scratch_on_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scratch folder of the test's own, the CPU, and no loader processes."""
    monkeypatch.setenv("UNSEG_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("UNSEG_WORKERS", "0")
    monkeypatch.setenv("UNSEG_DEVICE", "cpu")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of this working tree, and the wheel that is built of that sdist."""
    out = tmp_path_factory.mktemp("built")
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", ".", str(Path(__file__).parents[1])]
    done = subprocess.run(words, cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return out
