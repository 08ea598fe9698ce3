"""Facets of a ViT: queries, keys, values or tokens of any block, for every network that `vit.load` returns.

Shapes: B images, N patches (row-major over a grid of rows x cols), P prefix tokens (CLS, then registers), H heads, d channels
of a head, D = H d.
"""

from typing import Any, NamedTuple, cast

from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from unseg.core.console import InputError
from unseg.models import vit
from unseg.models.vit import ViT

QKV = ("queries", "keys", "values")  # in the order of timm's `qkv`


class Facets(NamedTuple):
    query: Tensor  # [B, H, d], of the CLS token
    keys: Tensor  # [B, H, N, d], of the patches; in a ViT with rotary embeddings rotated, as the CLS token attends to them
    features: Tensor  # [B, H, N, d], the chosen facet of the patches; tokens: [B, 1, N, D]


def read(model: ViT, images: Tensor, facet: str = "keys", layer: int = -1) -> Facets:
    """Read a block's facets, unscaled, before the softmax. Later layers are not computed, except for tokens.

    Args:
        images: [B, 3, rows * p, cols * p], normalised.
        facet: queries, keys or values after the projection, q_norm and k_norm, and before rotary embeddings, which would put
            positions into the affinity; or tokens, the block's output after the final LayerNorm.
        layer: index of the block; negative: counted from the end.

    Raises:
        InputError: there is no such block.
    """
    check_layer(model, layer, "mine.layer")
    index = layer % len(model.blocks)
    x, ropes = tokens_before(model, images, index)
    block, rope, prefix = list[Any](model.blocks)[index], ropes[index], model.num_prefix_tokens
    normed = block.norm1(x)  # [B, P + N, D]
    query, patches = project(block.attn, normed[:, 0], "queries"), normed[:, prefix:]  # [B, H, d], [B, N, D]
    keys = project(block.attn, patches, "keys").transpose(1, 2)  # [B, H, N, d]
    if facet == "tokens":
        features = model.norm(run_block(block, x, rope))[:, None, prefix:]  # [B, 1, N, D]
    else:
        features = keys if facet == "keys" else project(block.attn, patches, facet).transpose(1, 2)
    if rope is not None:
        keys = apply_rot_embed_cat(keys, rope, half=block.attn.rotate_half).type_as(keys)
    return Facets(query, keys, features)


def last_block(model: ViT, images: Tensor, facet: str) -> tuple[Tensor, Tensor]:
    """All tokens after the final LayerNorm [B, P + N, D], and a facet of the last block of all of them [B, H, P + N, d].

    images, facet: as in `read`; of tokens H is 1 and d is D.
    """
    block = vit.last(model)
    x, ropes = tokens_before(model, images, len(model.blocks) - 1)
    tokens = model.norm(run_block(block, x, ropes[-1]))
    features = tokens[:, None] if facet == "tokens" else project(block.attn, block.norm1(x), facet).transpose(1, 2)
    return tokens, features


def block_tokens(model: ViT, images: Tensor, layer: int = -1) -> Tensor:
    """A block's output, CLS first, then registers: [B, P + N, D]. Later blocks are not computed.

    The last block's is after the final LayerNorm, as in `vit.tokens`; an earlier one's is after a LayerNorm without weights,
    because the final one's weights fit the last block only.

    Args:
        images, layer: as in `read`; layer must be valid (`check_layer`).
    """
    index = layer % len(model.blocks)
    if index == len(model.blocks) - 1:
        return vit.tokens(model, images)
    x, _ = tokens_before(model, images, index + 1)
    norm: Any = model.norm  # mypy takes attributes of modules for tensors
    return nn.functional.layer_norm(x, x.shape[-1:], eps=getattr(norm, "eps", 1e-6))


def truncate(model: ViT, layer: int) -> ViT:
    """The ViT, changed in place, without the blocks after `layer`: its tokens are those of `block_tokens`."""
    index, norm = layer % len(model.blocks), cast(Any, model.norm)
    if index < len(model.blocks) - 1:
        model.blocks = model.blocks[: index + 1]
        if isinstance(norm, nn.LayerNorm):  # some models end without a norm; their heads begin with one
            nn.init.ones_(norm.weight)
            nn.init.zeros_(norm.bias)
    return model


def check_layer(model: ViT, layer: int, key: str) -> None:
    """Raises InputError if the ViT has no block `layer`, the value of the param `key`."""
    depth = len(model.blocks)
    if not -depth <= layer < depth:
        raise InputError(f"params.yaml: {key} is {layer}; this ViT has {depth} blocks: from {-depth} to {depth - 1}")


def embed(model: ViT, images: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """The tokens [B, P + N, D] before the first block, and the rotary embedding of each block or None."""
    if isinstance(model, VisionTransformer):
        return model.norm_pre(model._pos_embed(model.patch_embed(images))), [None] * len(model.blocks)
    x, rope = model._pos_embed(model.patch_embed(images))
    return model.norm_pre(x), list(rope) if model.rope_mixed and rope is not None else [rope] * len(model.blocks)


def tokens_before(model: ViT, images: Tensor, index: int) -> tuple[Tensor, list[Tensor | None]]:
    """The tokens [B, P + N, D] before block `index`, from 0, and the rotary embeddings of all blocks as `embed` gives them."""
    x, ropes = embed(model, images)
    for block, rope in zip(list[Any](model.blocks)[:index], ropes, strict=False):
        x = run_block(block, x, rope)
    return x, ropes


def run_block(block: Any, x: Tensor, rope: Tensor | None) -> Tensor:
    out: Tensor = block(x) if rope is None else block(x, rope=rope)
    return out


def project(attention: Any, x: Tensor, part: str) -> Tensor:
    """[..., D] after the block's first LayerNorm to its queries, keys or values [..., H, d]."""
    index = QKV.index(part)
    if attention.qkv is None:
        out = (attention.q_proj, attention.k_proj, attention.v_proj)[index](x)
    else:
        rows = slice(index * len(attention.qkv.weight) // 3, (index + 1) * len(attention.qkv.weight) // 3)
        bias = None if attention.qkv.bias is None else attention.qkv.bias[rows]
        if getattr(attention, "q_bias", None) is not None:  # EvaAttention
            bias = (attention.q_bias, attention.k_bias, attention.v_bias)[index]
        out = nn.functional.linear(x, attention.qkv.weight[rows], bias)
    out = out.unflatten(-1, (-1, attention.head_dim))  # [..., H, d]; fewer keys and values in grouped-query attention
    out = out.repeat_interleave(attention.num_heads // out.shape[-2], -2) if out.shape[-2] < attention.num_heads else out
    norms = (attention.q_norm, attention.k_norm, nn.Identity())
    normed: Tensor = norms[index](out)
    return normed
