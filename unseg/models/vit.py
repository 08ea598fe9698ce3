"""timm's vision transformers: DINO's layout, or any by its name; their weights and their tokens. `facets` reads a layer.

Shapes: B images, N patches (row-major over a grid of rows x cols), P prefix tokens (CLS, then registers), H heads, d channels
of a head, D = H d.
"""

from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.attention import Attention
from timm.models.eva import Eva, EvaBlock, checkpoint_filter_fn
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from unseg.core.console import InputError
from unseg.core.params import PositiveInt
from unseg.models import vit_files
from unseg.models.vit_files import Network
from unseg.models.weights import RANDOM_INIT, load_strictly

RANDOM_INIT_IMAGE = 224  # pixels, both sides: the position embeddings of a random ViT
SCORES = 1 << 20  # attention scores that `CpuAttention` computes at once, or those of one head if it has more
ViT = VisionTransformer | Eva  # Eva: with rotary position embeddings, e.g. DINOv3


@dataclass(frozen=True)
class Shape:
    """Of a ViT in DINO's layout. DINO ViT-S/16: patch 16, width 384, depth 12, heads 6."""

    patch: int  # pixels
    width: int  # D
    depth: int  # blocks
    heads: int  # H


@dataclass(frozen=True)
class Backbone:
    """The `backbone` and `embedder` groups of params.yaml; the shape is for a ViT that starts from random weights."""

    weights: str  # a file, or RANDOM_INIT: random, always the same
    patch: PositiveInt | None  # None: as the file of weights has it
    width: PositiveInt | None
    depth: PositiveInt | None
    heads: PositiveInt | None

    def __post_init__(self) -> None:
        if self.width and self.heads and self.width % self.heads:
            raise ValueError(f"backbone and embedder: width is {self.width}; it must be a multiple of heads, {self.heads}")

    def shape(self) -> Shape:
        """Raises InputError if a part of it is null."""
        sizes = {"patch": self.patch, "width": self.width, "depth": self.depth, "heads": self.heads}
        if missing := [key for key, x in sizes.items() if x is None]:
            raise InputError(
                f"params.yaml: {missing[0]} of backbone or embedder is null; a ViT that starts from random weights needs "
                "patch, width, depth and heads"
            )
        return Shape(**{key: x for key, x in sizes.items() if x is not None})


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


def build(shape: Shape, image: int, registers: int = 0, layer_scale: bool = False) -> VisionTransformer:
    """A ViT in DINO's layout with random weights. Position embeddings are for image x image pixels, and resized for others.

    registers, layer_scale: as in DINOv2; CLS and registers then have no position embedding.
    """
    return VisionTransformer(
        img_size=image,
        patch_size=shape.patch,
        embed_dim=shape.width,
        depth=shape.depth,
        num_heads=shape.heads,
        num_classes=0,
        dynamic_img_size=True,
        attn_layer=CpuAttention,
        reg_tokens=registers,
        no_embed_class=registers > 0,
        init_values=1.0 if layer_scale else None,
    )


def load(backbone: Backbone) -> ViT:
    """The ViT with its weights, in evaluation mode.

    Raises:
        InputError: a key or a shape does not fit params.yaml, the file's architecture or DINO's layout.
    """
    if backbone.weights == RANDOM_INIT:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build(backbone.shape(), RANDOM_INIT_IMAGE).eval()
    weights, wanted = backbone.weights, {key: x for key, x in vars(backbone).items() if key != "weights"}
    state = vit_files.read_vit(weights)
    network = vit_files.describe(weights, state, backbone.heads)
    vit_files.check_shape(network, weights, wanted)
    vit = build_network(network, "blocks.0.ls1.gamma" in state, weights)
    state = checkpoint_filter_fn(state, vit) if vit_files.is_dinov3(state) else state
    source = network.arch or f"a ViT in DINO's layout (patch {network.patch}, width {network.width}, depth {network.depth})"
    load_strictly(vit, state, weights, source)
    return vit.eval()


def build_network(network: Network, layer_scale: bool, weights: str) -> ViT:
    """The ViT that a file describes, with random weights. weights: the file, for the InputError if it cannot be built."""
    vit: Any  # mypy takes attributes of modules for tensors
    if network.arch:
        vit = build_timm(network, weights)
    else:
        shape = Shape(network.patch, network.width, network.depth, network.heads)
        if shape.width % shape.heads:
            raise InputError(f"{weights}: width {shape.width} is no multiple of heads, {shape.heads}; set heads in params.yaml")
        vit = build(shape, network.image, network.prefix_tokens - 1, layer_scale)
    vit.pretrained_cfg = {"mean": tuple(network.mean), "std": tuple(network.std), "architecture": network.arch}
    built: ViT = vit
    return built


def describe(vit: ViT) -> Network:
    """What `build_network` needs to build this ViT again."""
    mean, std = normalisation(vit)
    return Network(
        arch=(getattr(vit, "pretrained_cfg", None) or {}).get("architecture", ""),
        patch=patch_size(vit),
        width=vit.embed_dim,
        depth=len(vit.blocks),
        heads=last(vit).attn.num_heads,
        prefix_tokens=vit.num_prefix_tokens,
        image=int(vit.patch_embed.img_size[0]),
        mean=list(mean),
        std=list(std),
    )


def has_layer_scale(vit: ViT) -> bool:
    return hasattr(last(vit), "ls1") and not isinstance(last(vit).ls1, nn.Identity)


def build_timm(network: Network, weights: str) -> ViT:
    """timm's network of this name, without head and with random weights. weights: for the InputError, if there is none."""
    if not timm.is_model(network.arch):
        raise InputError(
            f"{weights}: timm {timm.__version__} has no {network.arch}; install the version that requirements.txt names"
        )
    vit = timm.create_model(
        network.arch,
        num_classes=0,
        img_size=network.image,
        embed_dim=network.width,
        depth=network.depth,
        num_heads=network.heads,
        dynamic_img_size=True,
    )
    return checked(vit, weights)


def checked(vit: nn.Module, name: str) -> ViT:
    """The network, in bf16 on a CPU by `CpuAttention`. Raises InputError if it is none whose facets `facets.read` can read."""
    blocks = getattr(vit, "blocks", [None])
    if not isinstance(vit, VisionTransformer | Eva) or not all(type(b) in (Block, EvaBlock) for b in blocks):
        raise InputError(f"{name}: {type(vit).__name__} is no ViT of plain blocks; choose one of timm's vit_ or eva models")
    if vit.cls_token is None:
        raise InputError(f"{name}: this ViT has no CLS token, which mining and embedding need; choose another")
    for block in vit.blocks:
        attention = block.attn
        plain = all(isinstance(getattr(attention, part), nn.Identity) for part in ("q_norm", "k_norm", "norm"))
        if type(attention) is Attention and plain and attention.gate is None:
            attention.__class__ = CpuAttention
    return vit


def patch_size(vit: ViT) -> int:
    """Pixels, both sides."""
    return int(vit.patch_embed.patch_size[0])


def normalisation(vit: ViT) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the input, RGB, values 0..1: the file's, or ImageNet's."""
    about = getattr(vit, "pretrained_cfg", None) or {}
    return tuple(about.get("mean", IMAGENET_DEFAULT_MEAN)), tuple(about.get("std", IMAGENET_DEFAULT_STD))


def last(vit: ViT) -> Any:
    """The last block: timm's Block, of which mypy knows only Module."""
    return vit.blocks[-1]


def tokens(vit: ViT, images: Tensor) -> Tensor:
    """All tokens after the final LayerNorm, CLS first, then registers: [B, P + N, D]."""
    out: Tensor = vit.forward_features(images)
    return out
