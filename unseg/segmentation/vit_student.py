"""A light head on a frozen ViT: the tokens of the train images are computed once, and the head is trained on them.

The ViT is that of the group `backbone`, whose last block is mined. Heads on frozen tokens are how self-supervised ViTs are
evaluated (DINOv2, arXiv:2304.07193, 7.4: batch norm and a linear layer); here the head learns pseudo-labels.

Shapes: B images, H rows, W columns of pixels; h x w patches; D channels of a token; F channels of the head's last input; C
labels; N train images; S pixels a side in training; L labels a side in training.
"""

from dataclasses import asdict, dataclass
from typing import Any, cast

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from unseg.core.image_index import ImageRecord
from unseg.core.label_maps import LabelMaps
from unseg.data.photos import read, resize
from unseg.engine import batching, environment
from unseg.models import frozen_tokens, vit
from unseg.models.vit import Backbone, ViT
from unseg.models.vit_files import Network
from unseg.segmentation.deeplab import conv_block
from unseg.segmentation.segmenter import Segmenter

LABELS_PER_PATCH = 4  # a side, in training; more would cost time, and the logits between tokens are interpolated anyway


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
    """Logits at the resolution of the input, from the frozen ViT's tokens and a head of `build_head`."""

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

    def tokens(self, x: Tensor) -> Tensor:
        """The patches' tokens after the final norm, [B, D, h, w]; x [B, 3, H, W] is resized up to whole patches."""
        h, w = ((side + self.patch - 1) // self.patch for side in x.shape[-2:])
        x = F.interpolate(x, (h * self.patch, w * self.patch), mode="bilinear", align_corners=False)  # exact if it is that size
        if not self.is_imagenet:
            x = x * x.new_tensor(self.scale).view(3, 1, 1) + x.new_tensor(self.shift).view(3, 1, 1)
        tokens = vit.tokens(self.vit, x)[:, self.vit.num_prefix_tokens :]  # [B, h w, D]
        return cast(Tensor, tokens.mT.unflatten(2, (h, w)))

    def features(self, x: Tensor) -> Tensor:
        """The input of the last layer, a 1x1 convolution: [B, F, h, w], or [B, F, 2 h, 2 w] with the head conv."""
        return cast(Tensor, self.head[:-1](self.tokens(x)))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W], normalised, to logits [B, C, H, W]."""
        logits = self.head[-1](self.features(x))
        return F.interpolate(logits.float(), x.shape[-2:], mode="bilinear", align_corners=False)


def build(p: Segmenter, backbone: Backbone, labels: int) -> ViTStudent:
    """The backbone with its weights, and a random head. Raises InputError for weights that do not fit."""
    loaded = vit.load(backbone)
    return ViTStudent(loaded, build_head(p.head, loaded.embed_dim, p.channels, labels))


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
    """Maps (index, seed) to an image's tokens [D, h, w] float32 and labels [L, L] int64, both mirrored for every other seed."""

    tokens: Tensor  # [N, 2, D, h, w] float16: of each image and of its mirror image
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

    Every process computes all of them. Raises InputError if they do not fit into memory, or for a missing label map.
    """
    side = -(-p.size // model.patch)  # h = w
    shape = (len(images), 2, model.vit.embed_dim, side, side)
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
        tokens[indices, mirrored] = model.tokens(x).half().cpu()

    model.to(environment.device()).eval()
    frozen_tokens.for_each_view(len(images), p.size, load, keep, p.precision)
    return TokenDataset(tokens, maps)
