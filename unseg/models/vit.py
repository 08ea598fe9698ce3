"""Vision transformers (timm's) and what the method reads off them: last-block queries and keys, CLS tokens.

Shapes: B images, N patches (row-major over a grid of rows x cols), H heads, d channels of a head, D = H d.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from unseg.core.console import InputError
from unseg.models.weights import RANDOM_INIT, read_state

RANDOM_INIT_IMAGE = 224  # pixels a side for which a random ViT has position embeddings
FEW, MANY = 256, 1000  # tokens: of fewer than FEW, and from MANY on, `CpuAttention` writes the softmax out
ROWS = 1100  # queries of a long sequence whose scores are held at once, at the most


@dataclass(frozen=True)
class Backbone:
    """The `backbone` and `embedder` groups of params.yaml. DINO ViT-S/16: patch 16, width 384, depth 12, heads 6."""

    weights: str  # a .safetensors of unseg, or a .pth in DINO's layout; RANDOM_INIT: random ones, always the same
    patch: int  # pixels
    width: int  # D
    depth: int  # blocks
    heads: int  # H

    def __post_init__(self) -> None:
        if min(self.patch, self.width, self.depth, self.heads) < 1:
            raise ValueError("backbone and embedder: patch, width, depth and heads must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"backbone and embedder: width is {self.width}; it must be a multiple of heads, {self.heads}")


class CpuAttention(Attention):
    """timm's attention; where a CPU only looks at a sequence in bf16, with its softmax written out.

    PyTorch's fused kernel does such products at the speed of float32: with it a ViT-S/16 takes 1.15 times as long at 197 tokens
    (written out for the whole batch) and 1.4 times at 2,121 (head by head, so that the scores stay in the cache). Between FEW
    and MANY it takes 1.2 times as long, too, and is left: the demo, whose scores were measured with it, lies there. Scores are
    rounded to bfloat16 before the softmax, which the fused kernel does not do: one layer's error is the same where attention is
    flat, and up to 1.6 times as large where it is sharp. Whoever sets `fused_attn` to False has timm's own.
    """

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        looks = x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled()
        theirs = not self.fused_attn or attn_mask is not None or is_causal or torch.compiler.is_compiling()
        if not looks or theirs or FEW <= x.shape[1] < MANY:
            plain: Tensor = super().forward(x, attn_mask, is_causal)
            return plain
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).flatten(1, 2)  # [B H, 1 + N, d]
        q = q * self.scale
        out = head_by_head(q, k, v) if x.shape[1] >= MANY else torch.bmm(torch.bmm(q, k.mT).softmax(2), v)
        answer: Tensor = self.proj(out.unflatten(0, (len(x), -1)).transpose(1, 2).flatten(2))
        return answer


def head_by_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T) v of [B H, 1 + N, d], with the scores of ROWS queries of one head in memory; carries no gradient."""
    out, length = torch.empty_like(q), q.shape[1]
    parts = -(-length // ROWS)
    held = q.new_empty(-(-length // parts), length)
    for head in range(len(q)):
        for rows, into in zip(q[head].chunk(parts), out[head].chunk(parts), strict=True):
            scores = torch.mm(rows, k[head].T, out=held[: len(rows)])
            torch.mm(torch.softmax(scores, 1, out=scores), v[head], out=into)
    return out


def build(backbone: Backbone, image: int, drop_path: float = 0.0) -> VisionTransformer:
    """A ViT in DINO's layout with fresh weights; position embeddings for `image` pixels a side, any size at run time."""
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
    """The ViT with its weights, in evaluation mode.

    Raises:
        InputError: a key or a shape that does not fit params.yaml's backbone.
    """
    if backbone.weights == RANDOM_INIT:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build(backbone, RANDOM_INIT_IMAGE).eval()
    state = read_vit(backbone.weights)
    side = round((state["pos_embed"].shape[1] - 1) ** 0.5)
    vit = build(backbone, side * backbone.patch)
    want = vit.state_dict()
    for key in sorted(want.keys() | state.keys()):
        have, need = (list(s[key].shape) if key in s else None for s in (state, want))
        if have != need:
            raise InputError(
                f"{backbone.weights}: {key} has shape {have}, params.yaml (patch {backbone.patch}, width "
                f"{backbone.width}, depth {backbone.depth}, heads {backbone.heads}) needs {need}"
            )
    vit.load_state_dict(state)
    return vit.eval()


def read_vit(weights: str) -> dict[str, Tensor]:
    """A ViT's tensors by timm's names, without heads and what a training wrapped it in.

    Raises:
        InputError: not weights, or not a ViT's.
    """
    state = {k.removeprefix("module.").removeprefix("backbone."): v for k, v in read_state(weights).items()}
    state = {k: v for k, v in state.items() if not k.startswith(("head.", "fc."))}
    if "pos_embed" not in state:
        raise InputError(f"{weights} has no pos_embed: not a ViT in DINO's layout")
    return state


def shape_of(weights: str, fresh: Backbone) -> Backbone:
    """The shape of the ViT in a file of any origin; that of `fresh` for RANDOM_INIT.

    Heads are what unseg noted in the file or, where nothing is noted, one for 64 channels, as in all of DINO's ViTs.

    Raises:
        InputError: not a ViT's weights.
    """
    if weights == RANDOM_INIT:
        return Backbone(RANDOM_INIT, fresh.patch, fresh.width, fresh.depth, fresh.heads)
    state = read_vit(weights)
    kernel = state.get("patch_embed.proj.weight")  # [D, 3, p, p]
    blocks = [int(m[1]) for key in state if (m := re.match(r"blocks\.(\d+)\.", key))]
    if kernel is None or kernel.ndim != 4 or not blocks:
        raise InputError(f"{weights} has no patch embedding or no block: not a ViT in DINO's layout")
    noted: dict[str, Any] = {}
    if Path(weights).suffix == ".safetensors":
        with safe_open(weights, "pt") as file:
            noted = json.loads((file.metadata() or {}).get("unseg", "{}")).get("backbone", {})
    return Backbone(weights, kernel.shape[2], kernel.shape[0], max(blocks) + 1, noted.get("heads", max(1, kernel.shape[0] // 64)))


def last(vit: VisionTransformer) -> Any:
    """The last block: timm's Block, which mypy takes for any module."""
    return vit.blocks[-1]


def last_block(vit: VisionTransformer, images: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys of the last block; its attention, its MLP and what follows are not computed.

    Args:
        images: [B, 3, rows * p, cols * p], normalised.

    Returns:
        The CLS token's queries [B, H, d], and the patches' keys [B, H, N, d]: outputs of the linear layer, neither
        scaled nor normalised.
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
