"""Environment variables and their invalid values (unseg/engine/environment.py)."""

import sys

import pytest
import torch

from unseg.core.console import InputError
from unseg.engine import distributed, environment


def test_variables_set_device_workers_and_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"DEVICE": "meta", "WORKERS": "3", "PROCESSES": "2", "CHECKPOINT_SECONDS": "0.5"}.items():
        monkeypatch.setenv(f"UNSEG_{name}", value)
    assert environment.device() == torch.device("meta")
    assert environment.device("cpu") == torch.device("cpu")
    assert (environment.workers(), environment.process_count(), environment.checkpoint_seconds()) == (3, 2, 0.5)
    environment.check()


def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UNSEG_DEVICE", "UNSEG_PROCESSES", "UNSEG_CHECKPOINT_SECONDS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert environment.device() == torch.device("cpu")
    assert (environment.process_count(), environment.checkpoint_seconds()) == (1, 60)


def test_each_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = []
    monkeypatch.setattr(torch, "empty", lambda *_, device: devices.append(device) or torch.zeros(0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.delenv("UNSEG_DEVICE", raising=False)
    assert environment.device() == torch.device("cuda", 2)
    assert environment.process_count() == 4
    for name, got, count in (("cuda", "cuda:2", 4), ("cuda:1", "cuda:1", 1), ("cpu", "cpu", 1)):
        monkeypatch.setenv("UNSEG_DEVICE", name)
        environment.device()
        assert (devices[-1], environment.process_count()) == (got, count)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("DEVICE", "nonsense"), ("DEVICE", "hpu"), ("WORKERS", "many"), ("WORKERS", "-1"), ("PROCESSES", "0")],
        *[("PROCESSES", "1.9"), ("CHECKPOINT_SECONDS", "nan"), ("CHECKPOINT_SECONDS", "-1"), ("CHECKPOINT_SECONDS", "soon")],
    ],
)
def test_invalid_values_are_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"UNSEG_{name}", value)
    with pytest.raises(InputError, match=f"UNSEG_{name} .*{value}"):
        environment.check()


def test_a_stage_ends_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSEG_PROCESSES", "two")
    monkeypatch.setattr(sys, "argv", ["unseg.engine.distributed", "stages.mine"])
    with pytest.raises(SystemExit) as end:
        distributed.main()
    assert end.value.code == "error: UNSEG_PROCESSES is 'two'; it must be a whole number of at least 1, or unset"
