"""A light head on a ViT: the tokens of the train images are computed once, and the head is trained on them.

The ViT is that of the group `backbone`, whose last block is mined. Heads on frozen tokens are how self-supervised ViTs are
evaluated (DINOv2, arXiv:2304.07193, 7.4: batch norm and a linear layer); here the head learns pseudo-labels. The last blocks
can be trained with it; the tokens that are computed once are then those before them.

Shapes: B images, H rows, W columns of pixels; h x w patches, P prefix tokens; D channels of a token; F channels of the head's
last input; C labels; N train images; S pixels a side in training; L labels a side in training.
"""

from dataclasses import asdict, dataclass
from typing import Any, cast

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.label_maps import LabelMaps
from unseg.data.photos import read, resize
from unseg.engine import batching, environment
from unseg.models import facets, frozen_tokens, vit
from unseg.models.vit import Backbone, ViT
from unseg.models.vit_files import Network
from unseg.segmentation.deeplab import conv_block
from unseg.segmentation.segmenter import Segmenter

LABELS_PER_PATCH = 4  # a side, in training; more would cost time, and the logits between tokens are interpolated anyway
BLOCKS_LR = 0.1  # of the head's learning rate, for the tuned blocks (Mask2Former, arXiv:2112.01527, for its backbones)


class Upsample(nn.Module):
    """Twice the sides, bilinear."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def build_head(kind: str, width: int, channels: int, labels: int) -> nn.Sequential:
    """Layers from tokens [B, D, h, w] to logits; the last is a 1x1 convolution.

    linear: batch norm; F = D, logits [B, C, h, w]. conv: batch norm and two 3x3 convolutions, of which the second has twice the
    resolution; F = channels, logits [B, C, 2 h, 2 w].
    """
    layers: list[nn.Module] = [nn.BatchNorm2d(width)]
    if kind == "conv":
        layers += [*conv_block(width, channels, 3), Upsample(), *conv_block(channels, channels, 3)]
    return nn.Sequential(*layers, nn.Conv2d(channels if kind == "conv" else width, labels, 1))


class ViTStudent(nn.Module):
    """Logits at the resolution of the input, from the ViT's tokens and a head of `build_head`. The ViT is frozen at first."""

    def __init__(self, backbone: ViT, head: nn.Sequential) -> None:
        super().__init__()
        self.patch = vit.patch_size(backbone)
        self.vit = backbone.requires_grad_(False)
        self.head = head
        mean, std = vit.normalisation(backbone)
        self.is_imagenet = (mean, std) == (batching.MEAN, batching.STD)
        self.scale = [s / t for s, t in zip(batching.STD, std, strict=True)]  # from ImageNet's normalisation to the ViT's
        self.shift = [(m - n) / t for m, n, t in zip(batching.MEAN, mean, std, strict=True)]

    def train(self, mode: bool = True) -> "ViTStudent":
        super().train(mode)
        self.vit.eval()
        return self

    def grid(self, x: Tensor) -> tuple[int, int]:
        """(h, w), the patches of x [..., H, W]; incomplete ones count."""
        h, w = ((side + self.patch - 1) // self.patch for side in x.shape[-2:])
        return h, w

    def vit_input(self, x: Tensor) -> Tensor:
        """x [B, 3, H, W], resized up to whole patches, in the ViT's normalisation."""
        h, w = self.grid(x)
        x = F.interpolate(x, (h * self.patch, w * self.patch), mode="bilinear", align_corners=False)  # exact if it is that size
        if not self.is_imagenet:
            x = x * x.new_tensor(self.scale).view(3, 1, 1) + x.new_tensor(self.shift).view(3, 1, 1)
        return x

    def tokens(self, x: Tensor) -> Tensor:
        """The patches' tokens after the final norm, [B, D, h, w], of x [B, 3, H, W]."""
        tokens = vit.tokens(self.vit, self.vit_input(x))[:, self.vit.num_prefix_tokens :]  # [B, h w, D]
        return cast(Tensor, tokens.mT.unflatten(2, self.grid(x)))

    def tokens_before(self, x: Tensor, count: int) -> Tensor:
        """All tokens before the last `count` blocks, [B, P + h w, D], of x [B, 3, H, W]."""
        return facets.tokens_before(self.vit, self.vit_input(x), len(self.vit.blocks) - count)[0]

    def features(self, x: Tensor) -> Tensor:
        """The input of the last layer, a 1x1 convolution: [B, F, h, w], or [B, F, 2 h, 2 w] with the head conv."""
        return cast(Tensor, self.head[:-1](self.tokens(x)))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W], normalised, to logits [B, C, H, W]."""
        return self.with_tokens(x)[0]

    def with_tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of `forward`, and the tokens from which they are computed, as `tokens`."""
        tokens = self.tokens(x)
        logits = self.head(tokens)
        return F.interpolate(logits.float(), x.shape[-2:], mode="bilinear", align_corners=False), tokens


class TunedStudent(nn.Module):
    """The last `count` blocks of a student's ViT and its head, which it shares: from `tokens_before` to the head's logits.

    size: S, as of the images of the tokens. The final norm stays frozen: the head begins with a norm of its own.
    """

    def __init__(self, student: ViTStudent, count: int, size: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(list(student.vit.blocks)[-count:]).requires_grad_(True)
        self.norm, self.head, self.prefix = student.vit.norm, student.head, student.vit.num_prefix_tokens
        image = next(student.vit.parameters()).new_zeros(1, 3, size, size)
        self.grid = student.grid(image)
        with torch.no_grad():
            self.ropes = facets.embed(student.vit, student.vit_input(image))[1][-count:]  # they depend on the grid alone

    def forward(self, x: Tensor) -> Tensor:
        for block, rope in zip(self.blocks, self.ropes, strict=True):
            x = facets.run_block(block, x, rope)
        x = self.norm(x)[:, self.prefix :]  # [B, h w, D]
        return cast(Tensor, self.head(x.mT.unflatten(2, self.grid)))


def build(p: Segmenter, backbone: Backbone, labels: int) -> ViTStudent:
    """The backbone's blocks up to p.layer with their weights, and a random head.

    Raises InputError for weights that do not fit, or too few blocks.
    """
    loaded = vit.load(backbone)
    facets.check_layer(loaded, p.layer, "segmenter.layer")
    loaded = facets.truncate(loaded, p.layer)
    if p.tuned_blocks > (depth := len(loaded.blocks)):
        raise InputError(
            f"params.yaml: segmenter.tuned_blocks is {p.tuned_blocks}; {backbone.weights} has {depth} blocks that it reads"
        )
    return ViTStudent(loaded, build_head(p.head, loaded.embed_dim, p.channels, labels))


def trained_part(model: ViTStudent, p: Segmenter) -> tuple[nn.Module, list[dict[str, Any]]]:
    """What is trained, from the tokens of `read_tokens` to the head's logits, and its parameters in groups for the optimizer."""
    head = {"params": list(model.head.parameters())}
    if not p.tuned_blocks:
        return model.head, [head]
    tuned = TunedStudent(model, p.tuned_blocks, p.size)
    return tuned, [head, {"params": list(tuned.blocks.parameters()), "lr_scale": BLOCKS_LR}]


def shape_of(model: ViTStudent, p: Segmenter, labels: int) -> dict[str, Any]:
    """What `from_shape` needs, for the metadata of the model's file."""
    return {
        "arch": p.arch,
        "network": asdict(vit.describe(model.vit)),
        "layer_scale": vit.has_layer_scale(model.vit),
        "head": p.head,
        "channels": p.channels,
        "labels": labels,
    }


def from_shape(shape: dict[str, Any]) -> ViTStudent:
    """A student with random weights."""
    network = Network(**shape["network"])
    head = build_head(shape["head"], network.width, shape["channels"], shape["labels"])
    return ViTStudent(vit.build_network(network, shape["layer_scale"], "the segmenter"), head)


@dataclass(frozen=True)
class TokenDataset(Dataset[Any]):
    """Maps (index, seed) to an image's tokens, float32, and labels [L, L] int64, both mirrored for every other seed."""

    tokens: Tensor  # [N, 2, D, h, w], or [N, 2, P + h w, D] before tuned blocks, float16: of each image and of its mirror image
    labels: Tensor  # [N, L, L] uint8

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, seed = draw
        mirrored = int(np.random.default_rng(seed).random() < 0.5)
        labels = self.labels[index].long()
        return self.tokens[index, mirrored].float(), labels.flip(1) if mirrored else labels


def read_tokens(model: ViTStudent, p: Segmenter, root: str, images: list[ImageRecord], labels: LabelMaps) -> TokenDataset:
    """Compute the tokens of all images at S x S, on this process's device, and read their labels (nearest neighbour).

    The tokens are those after the final norm, or those before the tuned blocks.
    Every process computes all of them. Raises InputError if they do not fit into memory, or for a missing label map.
    """
    side = -(-p.size // model.patch)  # h = w
    width, prefix = model.vit.embed_dim, model.vit.num_prefix_tokens
    shape = (len(images), 2, *((prefix + side**2, width) if p.tuned_blocks else (width, side, side)))
    remedy = "lower segmenter.size, or set segmenter.arch to resnet18 or resnet50"
    frozen_tokens.check_memory(shape, "segmenter.size", p.size, remedy)
    tokens = torch.empty(shape, dtype=torch.float16)
    grid = side * LABELS_PER_PATCH  # L
    maps = torch.empty(len(images), grid, grid, dtype=torch.uint8)
    for i, image in enumerate(images):
        maps[i] = torch.from_numpy(cv2.resize(labels[image], (grid, grid), interpolation=cv2.INTER_NEAREST_EXACT))

    def load(index: int) -> Tensor:
        return batching.to_tensor(resize(read(root, images[index]), (p.size, p.size)))

    def keep(indices: list[int], mirrored: int, x: Tensor) -> None:
        computed = model.tokens_before(x, p.tuned_blocks) if p.tuned_blocks else model.tokens(x)
        tokens[indices, mirrored] = computed.half().cpu()

    model.to(environment.device()).eval()
    frozen_tokens.for_each_view(len(images), p.size, load, keep, p.precision)
    return TokenDataset(tokens, maps)
