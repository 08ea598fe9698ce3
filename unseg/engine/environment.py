"""Devices, loader workers and processes of this machine, from environment variables (docs/running.md).

torch is imported inside functions, so that stages without a network start without it.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from unseg.core.console import InputError

if TYPE_CHECKING:
    import torch


def env_int(name: str, default: int, minimum: int = 0) -> int:
    """An integer variable; the default if it is unset or empty. Raises InputError if it is not an integer from minimum on."""
    if not (text := os.environ.get(name, "").strip()):
        return default
    if not text.isdecimal() or int(text) < minimum:
        raise InputError(f"{name} is {text!r}; it must be a whole number of at least {minimum}, or unset")
    return int(text)


def device(name: str | None = None) -> "torch.device":
    """The named device, else that of UNSEG_DEVICE, else this process's accelerator, else the CPU.

    If several processes run on one machine, each has the GPU of its local rank, unless the name has a number.

    Raises:
        InputError: this machine has no such device.
    """
    import torch

    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if chosen := name or os.environ.get("UNSEG_DEVICE"):
        try:
            return torch.empty(0, device=f"cuda:{local_rank}" if chosen == "cuda" else chosen).device
        except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
            source, reason = "device" if name else "UNSEG_DEVICE", str(error).split("\n")[0]
            raise InputError(f"{source} {chosen} cannot be used ({reason}); try cpu") from None
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def workers() -> int:
    """Loader processes: UNSEG_WORKERS, or the cores beyond the first two, but at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return env_int("UNSEG_WORKERS", min(8, max(0, cores - 2)))


def process_count() -> int:
    """Processes of a stage that runs a network: UNSEG_PROCESSES, or one for each GPU, or one if a device is named."""
    import torch

    gpus = torch.cuda.device_count() if os.environ.get("UNSEG_DEVICE", "") in ("", "cuda") else 1
    return env_int("UNSEG_PROCESSES", max(1, gpus), 1)


def checkpoint_seconds() -> float:
    """Seconds between two checkpoints: UNSEG_CHECKPOINT_SECONDS, or 60. Raises InputError if it is not a number from 0 on."""
    text = os.environ.get("UNSEG_CHECKPOINT_SECONDS", "").strip() or "60"
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise InputError(f"UNSEG_CHECKPOINT_SECONDS is {text!r}; it must be a number of at least 0, or unset")
    return seconds


def log_folder() -> Path | None:
    """UNSEG_LOGDIR, for TensorBoard's files; None if it is unset or empty. Raises InputError if TensorBoard is not installed."""
    if not (text := os.environ.get("UNSEG_LOGDIR", "").strip()):
        return None
    if find_spec("tensorboard") is None:
        raise InputError("UNSEG_LOGDIR is set, and TensorBoard is not installed; pip install tensorboard, or unset UNSEG_LOGDIR")
    return Path(text)


def check() -> None:
    """Raises InputError if UNSEG_DEVICE, _WORKERS, _PROCESSES, _CHECKPOINT_SECONDS or _LOGDIR cannot be used."""
    if os.environ.get("UNSEG_DEVICE"):
        device()
    workers(), checkpoint_seconds(), log_folder(), env_int("UNSEG_PROCESSES", 1, 1)
