"""bfloat16 or float32: the `precision` of several groups of params.yaml.

The default is auto: most CPUs emulate bfloat16, some 60 times slower than float32.
"""

from collections.abc import Mapping

import torch

from unseg.core.console import InputError
from unseg.core.params import Precision


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16: matrix products and convolutions in bfloat16; fp32: everything in float32; auto: bf16 where it is fast."""
    chosen = fastest_precision(device) if precision == "auto" else precision
    return torch.autocast(device.type, torch.bfloat16, enabled=chosen == "bf16")


def fastest_precision(device: torch.device) -> str:
    return "bf16" if fast_bf16(device) else "fp32"


def fast_bf16(device: torch.device) -> bool:
    """Whether the device has bfloat16 units that torch may use; they are about twice as fast as float32.

    ATEN_CPU_CAPABILITY=avx2 holds an x86 CPU to float32, as if it had no such units.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    units = ("avx512_bf16", "amx_bf16") if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else ("bf16",)
    return any(torch.cpu.get_capabilities().get(name, False) for name in units)


def portable(precision: Precision) -> Precision:
    """The precision for any device of a model that was trained elsewhere: bf16 becomes auto."""
    return "auto" if precision == "bf16" else precision


def check_not_emulated(precisions: Mapping[str, str], device: torch.device) -> None:
    """Raises InputError for bf16 on a CPU that emulates it: a stage that takes minutes in float32 would take hours.

    precisions: values by key of params.yaml, e.g. {"croc.precision": "bf16"}.
    """
    keys = [key for key, precision in precisions.items() if precision == "bf16"]
    if keys and device.type == "cpu" and not fast_bf16(device):
        raise InputError(f"{', '.join(keys)}: bf16 is emulated on this CPU, some 60 times slower than fp32; set auto or fp32")
