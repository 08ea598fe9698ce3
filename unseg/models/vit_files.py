"""A file of a ViT's weights: its tensors by timm's names, and which network they are of.

A file that unseg wrote says so in its metadata (key `unseg`, JSON): timm's architecture, patch, width, depth, heads, prefix
tokens, normalisation. Other files are read in the layout of DINO, with LayerScale and registers where they are there. A prefix
is taken off, and heads are left out: DINO, iBOT, CrOC and CrIBo keep `teacher` and `student` with `backbone.` or
`module.backbone.`, MSN `target_encoder` with `module.`, Leopart `model.`, MAE `model`, NeCo and DINOv2 plain names.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from unseg.core import params
from unseg.core.console import InputError
from unseg.core.params import PositiveInt
from unseg.models.weights import read_state

PROJECTION = "patch_embed.proj.weight"  # in every layout; what precedes it is the prefix
TEACHERS = ("teacher", "target_encoder", "momentum", "ema")  # of several ViTs in a file the one under such a prefix is read
LEFT_OUT = re.compile(r"(head\w*|fc|proj\w*|prototypes|decoder\w*)\..+|mask_token|masked_embed|decoder_pos_embed")


@dataclass(frozen=True)
class Network:
    """What a file says of its ViT, or shows."""

    arch: str  # timm's name, e.g. vit_small_patch14_reg4_dinov2; "": DINO's layout
    patch: PositiveInt  # pixels
    width: PositiveInt  # D
    depth: PositiveInt  # blocks
    heads: PositiveInt  # H
    prefix_tokens: PositiveInt  # CLS and registers
    image: PositiveInt  # pixels, both sides: position embeddings are for it
    mean: list[float]  # of the input, RGB, values 0..1
    std: list[float]


def read_vit(weights: str) -> dict[str, Tensor]:
    """A ViT's tensors by timm's names, without prefix and heads. Raises InputError if the file is not a ViT's weights."""
    state = {key: x for key, x in read_state(weights).items() if isinstance(x, Tensor)}
    prefixes = [key.removesuffix(PROJECTION) for key in state if f".{key}".endswith(f".{PROJECTION}")]
    if not prefixes:
        raise InputError(f"{weights} has no {PROJECTION}: not a ViT in timm's or DINO's layout; see docs/weights.md")
    prefix = min(prefixes, key=lambda p: (not any(name in p for name in TEACHERS), len(p), p))
    state = {key.removeprefix(prefix): x for key, x in state.items() if key.startswith(prefix)}
    registers = state.pop("register_tokens", None)
    if registers is not None and "pos_embed" in state and "cls_token" in state:  # DINOv2's authors; timm's `_convert_dinov2`
        positions = state["pos_embed"]
        state |= {"reg_token": registers, "cls_token": state["cls_token"] + positions[:, :1], "pos_embed": positions[:, 1:]}
    return {key: x for key, x in state.items() if not LEFT_OUT.fullmatch(key)}


def read_metadata(weights: str) -> dict[str, Any]:
    """What unseg wrote beside the tensors; {} for other files."""
    if Path(weights).suffix != ".safetensors":
        return {}
    with safe_open(weights, "pt") as file:
        metadata: dict[str, Any] = json.loads((file.metadata() or {}).get("unseg", "{}"))
    return metadata


def describe(weights: str, state: dict[str, Tensor], heads: int | None) -> Network:
    """The network of a file whose tensors are `state`.

    Args:
        heads: as params.yaml says, for a file that does not say; None: one per 64 channels, as in all of DINO's ViTs.

    Raises:
        InputError: it is neither a description nor DINO's layout.
    """
    about = read_metadata(weights).get("backbone", {})
    if "arch" in about:
        network: Network = params.check("unseg.backbone", Network, about, weights)
        return network
    kernel, positions = state[PROJECTION], state.get("pos_embed")  # [D, 3, p, p], [1, N or 1 + N, D]
    blocks = [int(m[1]) for key in state if (m := re.match(r"blocks\.(\d+)\.", key))]
    if positions is None or positions.ndim != 3 or kernel.ndim != 4 or not blocks:
        raise InputError(f"{weights} has no pos_embed or no block: not a ViT in DINO's layout; see docs/weights.md")
    width, _, patch, _ = kernel.shape
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    side = math.isqrt(positions.shape[1] - (not registers))  # DINOv2's registers and CLS have no position
    shape = (patch, width, max(blocks) + 1, about.get("heads", heads or max(1, width // 64)))
    mean, std = list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
    return Network("", *shape, 1 + registers, max(1, side) * patch, mean, std)


def check_shape(network: Network, weights: str, wanted: dict[str, int | None]) -> None:
    """Raises InputError if the file has another patch, width, depth or number of heads than wanted; None is any."""
    for key, value in wanted.items():
        if value is not None and value != getattr(network, key):
            raise InputError(
                f"{weights}: the ViT in it has {key} {getattr(network, key)}, wanted is {key} {value}; name another file, or "
                f"write null for {key} in params.yaml, which is whatever the file has"
            )
