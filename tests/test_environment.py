"""unseg.environment: what the variables give, and which of their values are refused."""

import subprocess
import sys

import pytest
import torch

from unseg import environment
from unseg.console import InputError


def test_it_chooses_device_workers_and_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"DEVICE": "meta", "WORKERS": "3", "PROCESSES": "2", "CHECKPOINT_SECONDS": "0.5"}.items():
        monkeypatch.setenv(f"UNSEG_{name}", value)
    assert environment.device() == torch.device("meta")
    assert environment.device("cpu") == torch.device("cpu")
    assert (environment.workers(), environment.processes(), environment.checkpoint_seconds()) == (3, 2, 0.5)
    environment.check()


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UNSEG_DEVICE", "UNSEG_PROCESSES", "UNSEG_CHECKPOINT_SECONDS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert environment.device() == torch.device("cpu")
    assert (environment.processes(), environment.checkpoint_seconds()) == (1, 60)


@pytest.mark.parametrize(
    ("name", "value"),
    [("DEVICE", "nonsense"), ("WORKERS", "many"), ("WORKERS", "-1"), ("PROCESSES", "0"), ("CHECKPOINT_SECONDS", "nan")],
)
def test_what_cannot_be_used_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"UNSEG_{name}", value)
    with pytest.raises(InputError, match=f"UNSEG_{name} .*{value}"):
        environment.check()


def test_a_stage_says_it_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSEG_PROCESSES", "two")
    done = subprocess.run([sys.executable, "-m", "unseg.distributed", "stages.mine"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: UNSEG_PROCESSES is 'two'; it must be a number of at least 1, or unset\n"
