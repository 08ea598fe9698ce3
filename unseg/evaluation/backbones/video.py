"""Video object segmentation without training: labels of the first frame propagated by similarity of a ViT's tokens.

CrOC, arXiv:2303.13245; docs/spec/croc.md, 9.3 (DINO's and SelfPatch's protocol, but for its red deviation of 0.228).

Shapes: T frames, h x w tokens, D channels, C labels (0 background, then objects), R context frames.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from PIL import Image as Pillow
from torch import Tensor
from torch.nn import functional as F

from unseg.core.label_maps import IGNORE_LABEL
from unseg.core.params import PositiveFloat, PositiveInt, Precision
from unseg.data import photos
from unseg.engine import batching, environment
from unseg.evaluation.backbones import sets
from unseg.evaluation.backbones.davis import Sequence
from unseg.models import vit
from unseg.models.vit import ViT


@dataclass(frozen=True)
class BackboneVideo:
    """The `backbone_video` group of params.yaml."""

    size: PositiveInt  # shorter side, pixels
    multiple: PositiveInt  # the longer side is cut down to a multiple of it, pixels
    context: Annotated[int, Ge(0)]  # previous frames, in addition to the first
    radius: Annotated[int, Ge(0)]  # tokens, up, down and sideways, from which a label may come
    top: PositiveInt  # most similar tokens that a label comes from
    temperature: PositiveFloat
    precision: Precision  # of the ViT

    def __post_init__(self) -> None:
        if self.size < self.multiple:
            raise ValueError(f"backbone_video.size is {self.size}; it must be at least backbone_video.multiple, {self.multiple}")


def input_size(size: tuple[int, int], p: BackboneVideo) -> tuple[int, int]:
    """(H, W) of the ViT's input for a frame of size (H, W)."""
    longest = max(size) * p.size // min(size) // p.multiple * p.multiple
    return (p.size, longest) if size[0] <= size[1] else (longest, p.size)


def propagate_to(target: Tensor, sources: Tensor, labels: Tensor, p: BackboneVideo) -> Tensor:
    """Soft labels [h, w, C] of a frame: weighted means of the labels of the p.top most similar tokens of all context frames.

    Tokens as similar as the last of these count, too. The soft labels of a token sum to 1, as those of the context do.

    Args:
        target: [h, w, D] tokens of the frame, of length 1.
        sources: [R, h, w, D] tokens of the context frames, of length 1.
        labels: [R, h, w, C] their soft labels.
    """
    rows, cols, _ = target.shape
    col = torch.arange(cols, device=target.device)
    near = (col[:, None] - col).abs() <= p.radius  # [w, w]
    propagated = []
    for row in range(rows):  # one row of tokens at a time: N x N similarities of a large frame would not fit
        window = slice(max(0, row - p.radius), row + p.radius + 1)
        cosine = torch.einsum("cd,rhwd->crhw", target[row], sources[:, window])  # [w, R, window, w]
        weight = ((cosine / p.temperature).exp() * near[:, None, None]).flatten(1)  # [w, sources]
        least = weight.topk(min(p.top, weight.shape[1]), 1).values[:, -1:]
        weight = weight.masked_fill(weight < least, 0)
        propagated.append(weight / weight.sum(1, keepdim=True) @ labels[:, window].flatten(0, 2))  # [w, C]
    return torch.stack(propagated)


def propagate(frames: Iterable[Tensor], first: Tensor, p: BackboneVideo) -> Iterator[Tensor]:
    """Soft labels [h, w, C] of each frame after the first; frames as tokens [h, w, D] of length 1, first [h, w, C]."""
    frames = iter(frames)
    start = next(frames), first
    past: deque[tuple[Tensor, Tensor]] = deque(maxlen=p.context)
    for frame in frames:
        sources, labels = zip(start, *past, strict=True)
        soft = propagate_to(frame, torch.stack(sources), torch.stack(labels), p)
        past.append((frame, soft))
        yield soft


def upsample(soft: Tensor, patch: int, size: tuple[int, int]) -> np.ndarray:
    """Soft labels [h, w, C] to a label map (H, W) uint8: bilinear, each label scaled to 0..1, argmax, nearest neighbour."""
    large = F.interpolate(soft.permute(2, 0, 1)[None], scale_factor=patch, mode="bilinear", align_corners=False)[0]  # [C, ., .]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    large = torch.where(high > 0, (large - low) / (high - low).clamp_min(1e-12), large)
    labels = large.argmax(0).to(torch.uint8).cpu().numpy()
    return np.array(Pillow.fromarray(labels).resize(size[::-1], Pillow.Resampling.NEAREST))


@torch.no_grad()
def segment(p: BackboneVideo, model: ViT, sequence: Sequence, first: np.ndarray) -> np.ndarray:
    """Label maps [T, H, W] uint8 of a sequence by that of its first frame [H, W] uint8, in which void counts as background."""
    device, full = environment.device(), (first.shape[0], first.shape[1])
    mean, std = vit.normalisation(model)
    size, patch = input_size(full, p), vit.patch_size(model)
    first = np.where(first == IGNORE_LABEL, 0, first).astype(np.uint8)
    grid = (size[1] // patch, size[0] // patch)
    small = torch.from_numpy(np.array(Pillow.fromarray(first).resize(grid, Pillow.Resampling.NEAREST))).long()
    one_hot = F.one_hot(small, int(first.max()) + 1).float().to(device)  # [h, w, C]

    def frames() -> Iterator[Tensor]:
        for path in sequence.frames:
            x = batching.to_tensor(photos.resize(photos.open_rgb(path), size), mean, std)[None].to(device)
            yield F.normalize(sets.extract_tokens(model, x, p.precision)[0].permute(1, 2, 0), dim=-1)

    return np.stack([first, *(upsample(soft, patch, full) for soft in propagate(frames(), one_hot, p))])
