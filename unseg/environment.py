"""What the environment says of this machine: devices, loaders, processes; no setting of a result. README has the table.

torch is imported where it is asked: stages without a network start without it.
"""

import math
import os
from typing import TYPE_CHECKING

from unseg.console import InputError

if TYPE_CHECKING:
    import torch


def number(name: str, otherwise: float, least: float = 0) -> float:
    """The variable's number, or `otherwise` where it is unset or empty.

    Raises:
        InputError: it is no number, or one below `least`.
    """
    if not (text := os.environ.get(name, "").strip()):
        return otherwise
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value < math.inf:
        raise InputError(f"{name} is {text!r}; it must be a number of at least {least:g}, or unset")
    return value


def device(name: str | None = None) -> "torch.device":
    """The device of that name; else UNSEG_DEVICE's; else the accelerator of this process, or the CPU.

    Raises:
        InputError: there is no such device here.
    """
    import torch

    if chosen := name or os.environ.get("UNSEG_DEVICE"):
        try:
            return torch.empty(0, device=chosen).device
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            what, reason = "device" if name else "UNSEG_DEVICE", str(error).split("\n")[0]
            raise InputError(f"{what} {chosen} cannot be used ({reason}); try cpu") from None
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def workers() -> int:
    """Loader processes: UNSEG_WORKERS, or one for each core beyond the first two, 8 at the most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(number("UNSEG_WORKERS", min(8, max(0, cores - 2))))


def processes() -> int:
    """Processes of a stage that trains or runs a network: UNSEG_PROCESSES, or one for each GPU."""
    import torch

    return int(number("UNSEG_PROCESSES", max(1, torch.cuda.device_count()), 1))


def checkpoint_seconds() -> float:
    """Seconds between two checkpoints."""
    return number("UNSEG_CHECKPOINT_SECONDS", 60)


def check() -> None:
    """Raises: InputError, where a variable that is set cannot be used."""
    if os.environ.get("UNSEG_DEVICE"):
        device()
    workers(), checkpoint_seconds(), number("UNSEG_PROCESSES", 1, 1)
