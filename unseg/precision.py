"""What is computed in bfloat16: the `precision` of several groups of params.yaml."""

import torch

PRECISIONS = ("fp32", "bf16", "auto")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16: matrix products and convolutions in bfloat16; fp32: everything in float32; auto: bf16 where it is fast."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16" or (precision == "auto" and fast_bf16(device)))


def fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself, which is then some twice as fast as float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def check_precision(key: str, precision: str) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"{key} is {precision!r}; it must be fp32, bf16 or auto")
