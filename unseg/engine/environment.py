"""Devices, loader workers and processes of this machine, from environment variables: docs/running.md has the table.

torch is imported where it is asked: stages without a network start without it.
"""

import os
from typing import TYPE_CHECKING

from unseg.core.console import InputError

if TYPE_CHECKING:
    import torch


def env_int(name: str, otherwise: int, least: int = 0) -> int:
    """The variable's whole number, or `otherwise` where it is unset or empty.

    Raises:
        InputError: it is none, or one below `least`.
    """
    if not (text := os.environ.get(name, "").strip()):
        return otherwise
    if not text.isdecimal() or int(text) < least:
        raise InputError(f"{name} is {text!r}; it must be a whole number of at least {least}, or unset")
    return int(text)


def device(name: str | None = None) -> "torch.device":
    """The device of that name; else UNSEG_DEVICE's; else the accelerator of this process, or the CPU.

    Of several processes on one machine, each has the GPU of its own rank, unless the name has a number.

    Raises:
        InputError: there is no such device here.
    """
    import torch

    own = int(os.environ.get("LOCAL_RANK", 0))
    if chosen := name or os.environ.get("UNSEG_DEVICE"):
        try:
            return torch.empty(0, device=f"cuda:{own}" if chosen == "cuda" else chosen).device
        except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
            what, reason = "device" if name else "UNSEG_DEVICE", str(error).split("\n")[0]
            raise InputError(f"{what} {chosen} cannot be used ({reason}); try cpu") from None
    if torch.cuda.is_available():
        return torch.device("cuda", own)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def workers() -> int:
    """Loader processes: UNSEG_WORKERS, or one for each core beyond the first two, 8 at the most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return env_int("UNSEG_WORKERS", min(8, max(0, cores - 2)))


def processes() -> int:
    """Processes of a stage that trains or runs a network: UNSEG_PROCESSES, or one for each GPU (one, where a device is named)."""
    import torch

    gpus = torch.cuda.device_count() if os.environ.get("UNSEG_DEVICE", "") in ("", "cuda") else 1
    return env_int("UNSEG_PROCESSES", max(1, gpus), 1)


def checkpoint_seconds() -> float:
    """Seconds between two checkpoints: UNSEG_CHECKPOINT_SECONDS, or 60.

    Raises:
        InputError: it is no number, or a negative one.
    """
    text = os.environ.get("UNSEG_CHECKPOINT_SECONDS", "").strip() or "60"
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise InputError(f"UNSEG_CHECKPOINT_SECONDS is {text!r}; it must be a number of at least 0, or unset")
    return seconds


def check() -> None:
    """Raises: InputError, where UNSEG_DEVICE, _WORKERS, _PROCESSES or _CHECKPOINT_SECONDS is set and cannot be used."""
    if os.environ.get("UNSEG_DEVICE"):
        device()
    workers(), checkpoint_seconds(), env_int("UNSEG_PROCESSES", 1, 1)
