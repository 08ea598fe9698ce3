"""Weight files of ViTs: the tensors by timm's names, and the description of the network.

unseg writes the description into the metadata of its own files (key `unseg`, JSON): timm's architecture, patch, width, depth,
heads, prefix tokens, normalisation. Other files must have DINO's layout; LayerScale and registers are recognised. Prefixes and
heads are removed. DINO, iBOT, CrOC and CrIBo store `teacher` and `student` with the prefix `backbone.` or `module.backbone.`, MSN
`target_encoder` with `module.`, Leopart uses `model.`, MAE stores `model`, NeCo, DINOv2 and DINOv3 (timm's Eva) use plain names.
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

PROJECTION = "patch_embed.proj.weight"  # in every layout; the prefix stands before it
TEACHERS = ("teacher", "target_encoder", "momentum", "ema")  # if a file has several ViTs, the one with such a prefix is read
LEFT_OUT = re.compile(r"(head\w*|fc|proj\w*|prototypes|decoder\w*)\..+|mask_token|masked_embed|decoder_pos_embed")


@dataclass(frozen=True)
class Network:
    """The description of a ViT, from the metadata of its file or deduced from its tensors."""

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
    """The metadata of a file that unseg wrote; {} for other files."""
    if Path(weights).suffix != ".safetensors":
        return {}
    with safe_open(weights, "pt") as file:
        metadata: dict[str, Any] = json.loads((file.metadata() or {}).get("unseg", "{}"))
    return metadata


def describe(weights: str, state: dict[str, Tensor], heads: int | None) -> Network:
    """The network of a file with the tensors `state`.

    Args:
        heads: of params.yaml, used if the file has no description; None: one per 64 channels, as in all of DINO's ViTs.

    Raises:
        InputError: the file has no description and not DINO's layout.
    """
    about = read_metadata(weights).get("backbone", {})
    if "arch" in about:
        network: Network = params.check("unseg.backbone", Network, about, weights)
        return network
    mean, std = list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
    kernel, positions = state[PROJECTION], state.get("pos_embed")  # [D, 3, p, p], [1, N or 1 + N, D]
    blocks = [int(m[1]) for key in state if (m := re.match(r"blocks\.(\d+)\.", key))]
    if is_dinov3(state) and kernel.ndim == 4 and blocks:
        width, _, patch, _ = kernel.shape
        arch = "vit_small_plus_patch16_dinov3_qkvb" if "blocks.0.mlp.w3.weight" in state else "vit_small_patch16_dinov3_qkvb"
        prefix = 1 + state["storage_tokens"].shape[1]
        return Network(arch, patch, width, max(blocks) + 1, heads or max(1, width // 64), prefix, 14 * patch, mean, std)
    if positions is None or positions.ndim != 3 or kernel.ndim != 4 or not blocks:
        raise InputError(f"{weights} has no pos_embed or no block: not a ViT in DINO's layout; see docs/weights.md")
    width, _, patch, _ = kernel.shape
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    side = math.isqrt(positions.shape[1] - (not registers))  # DINOv2's registers and CLS have no position
    shape = (patch, width, max(blocks) + 1, about.get("heads", heads or max(1, width // 64)))
    return Network("", *shape, 1 + registers, max(1, side) * patch, mean, std)


def is_dinov3(state: dict[str, Tensor]) -> bool:
    """Whether the tensors have the names of DINOv3's authors, which timm's `eva.checkpoint_filter_fn` converts."""
    return "storage_tokens" in state


def check_shape(network: Network, weights: str, wanted: dict[str, int | None]) -> None:
    """Raises InputError if the file has another patch, width, depth or number of heads than wanted; None: any."""
    for key, value in wanted.items():
        if value is not None and value != getattr(network, key):
            raise InputError(
                f"{weights}: the ViT in it has {key} {getattr(network, key)}, wanted is {key} {value}; name another file, or "
                f"write null for {key} in params.yaml, which is whatever the file has"
            )
