"""timm's vision transformers, and what the method takes from them: queries and keys of the last block, CLS tokens.

Shapes: B images, N patches (row-major over a grid of rows x cols), H heads, d channels of a head, D = H d.
"""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from unseg.core.console import InputError
from unseg.core.params import PositiveInt
from unseg.models.weights import RANDOM_INIT, load_strictly, read_state

RANDOM_INIT_IMAGE = 224  # pixels, both sides: the position embeddings of a random ViT
SCORES = 1 << 20  # attention scores that `CpuAttention` computes at once, or those of one head if it has more


@dataclass(frozen=True)
class Backbone:
    """The `backbone` and `embedder` groups of params.yaml. DINO ViT-S/16: patch 16, width 384, depth 12, heads 6."""

    weights: str  # a .safetensors of unseg, or a .pth in DINO's layout; RANDOM_INIT: random, always the same
    patch: PositiveInt  # pixels
    width: PositiveInt  # D
    depth: PositiveInt  # blocks
    heads: PositiveInt  # H

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"backbone and embedder: width is {self.width}; it must be a multiple of heads, {self.heads}")


class CpuAttention(Attention):
    """timm's attention; for inference in bf16 on a CPU, explicit softmax over a few heads at a time.

    PyTorch's fused kernel is slower there: a ViT-S/16 takes 1.1 times as long at 65 and 197 tokens, 1.3 times at 2,121. It does
    not round scores to bfloat16, as here: a layer's error is up to 1.6 times as large if attention is sharp.
    """

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        inference = x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled()
        plain = self.fused_attn and attn_mask is None and not is_causal and not torch.compiler.is_compiling()
        if not inference or not plain:
            out: Tensor = super().forward(x, attn_mask, is_causal)
            return out
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).flatten(1, 2)  # [B H, 1 + N, d]
        q = q * self.scale
        heads = max(1, SCORES // x.shape[1] ** 2)  # of all images, at a time
        parts = zip(q.split(heads), k.split(heads), v.split(heads), strict=True)
        out = torch.cat([torch.bmm(torch.bmm(q, k.mT).softmax(2), v) for q, k, v in parts])  # [B H, 1 + N, d]
        out = self.proj(out.unflatten(0, (len(x), -1)).transpose(1, 2).flatten(2))  # [B, 1 + N, D]
        return out


def build(backbone: Backbone, image: int, drop_path: float = 0.0) -> VisionTransformer:
    """A ViT in DINO's layout with random weights. Position embeddings are for image x image pixels, and resized for others."""
    return VisionTransformer(
        img_size=image,
        patch_size=backbone.patch,
        embed_dim=backbone.width,
        depth=backbone.depth,
        num_heads=backbone.heads,
        num_classes=0,
        dynamic_img_size=True,
        drop_path_rate=drop_path,
        attn_layer=CpuAttention,
    )


def load(backbone: Backbone) -> VisionTransformer:
    """The ViT with its weights, in evaluation mode. Raises InputError for a key or a shape that does not fit params.yaml."""
    if backbone.weights == RANDOM_INIT:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build(backbone, RANDOM_INIT_IMAGE).eval()
    state = read_vit(backbone.weights)
    side = round((state["pos_embed"].shape[1] - 1) ** 0.5)
    vit = build(backbone, side * backbone.patch)
    shape = f"params.yaml (patch {backbone.patch}, width {backbone.width}, depth {backbone.depth}, heads {backbone.heads})"
    load_strictly(vit, state, backbone.weights, shape)
    return vit.eval()


def read_vit(weights: str) -> dict[str, Tensor]:
    """A ViT's tensors by timm's names, without heads and prefixes. Raises InputError if the file is not a ViT's weights."""
    state = {k.removeprefix("module.").removeprefix("backbone."): v for k, v in read_state(weights).items()}
    state = {k: v for k, v in state.items() if not k.startswith(("head.", "fc."))}
    if "pos_embed" not in state:
        raise InputError(f"{weights} has no pos_embed: not a ViT in DINO's layout")
    return state


def shape_of(weights: str, default: Backbone) -> Backbone:
    """The shape of the ViT in a file (InputError if it is none); that of `default` for RANDOM_INIT.

    The number of heads is in the metadata of unseg's files; otherwise it is one per 64 channels, as in all of DINO's ViTs.
    """
    if weights == RANDOM_INIT:
        return replace(default, weights=RANDOM_INIT)
    state = read_vit(weights)
    kernel = state.get("patch_embed.proj.weight")  # [D, 3, p, p]
    blocks = [int(m[1]) for key in state if (m := re.match(r"blocks\.(\d+)\.", key))]
    if kernel is None or kernel.ndim != 4 or not blocks:
        raise InputError(f"{weights} has no patch embedding or no block: not a ViT in DINO's layout")
    metadata: dict[str, Any] = {}
    if Path(weights).suffix == ".safetensors":
        with safe_open(weights, "pt") as file:
            metadata = json.loads((file.metadata() or {}).get("unseg", "{}")).get("backbone", {})
    width, _, patch, _ = kernel.shape
    return Backbone(weights, patch, width, max(blocks) + 1, metadata.get("heads", max(1, width // 64)))


def last(vit: VisionTransformer) -> Any:
    """The last block: timm's Block, of which mypy knows only Module."""
    return vit.blocks[-1]


def last_block(vit: VisionTransformer, images: Tensor) -> tuple[Tensor, Tensor]:
    """The CLS token's queries [B, H, d] and the patches' keys [B, H, N, d] of the last block, neither scaled nor normalised.

    Nothing after them is computed. images: [B, 3, rows * p, cols * p], normalised.
    """
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
    for block in vit.blocks[:-1]:
        x = block(x)
    x = last(vit).norm1(x)  # [B, 1 + N, D]
    attention = last(vit).attn
    heads, width = attention.num_heads, x.shape[-1]
    weight, bias = attention.qkv.weight, attention.qkv.bias
    query = torch.nn.functional.linear(x[:, 0], weight[:width], bias[:width])  # [B, D]
    keys = torch.nn.functional.linear(x[:, 1:], weight[width : 2 * width], bias[width : 2 * width])  # [B, N, D]
    return query.unflatten(1, (heads, -1)), keys.unflatten(2, (heads, -1)).transpose(1, 2)


def tokens(vit: VisionTransformer, images: Tensor) -> Tensor:
    """All tokens after the final LayerNorm, CLS first: [B, 1 + N, D]."""
    out: Tensor = vit.forward_features(images)
    return out
