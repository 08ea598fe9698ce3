"""Video object segmentation without training: labels of the first frame carried on by similarity of a ViT's tokens.

CrOC, arXiv:2303.13245; docs/spec/croc.md, 9.3 (DINO's and SelfPatch's protocol, but for its red deviation of 0.228).

Shapes: T frames, h x w tokens, D channels, C labels (0 background, then objects), R context frames.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image as Pillow
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from unseg.core.label_maps import IGNORE_LABEL
from unseg.data import photos
from unseg.engine import batching, environment
from unseg.engine.precision import check_precision
from unseg.evaluation.backbones import sets
from unseg.evaluation.backbones.davis import Sequence


@dataclass(frozen=True)
class BackboneVideo:
    """The `backbone_video` group of params.yaml."""

    size: int  # shorter side, pixels
    multiple: int  # pixels, to a multiple of which the longer side is cut down
    context: int  # frames before this one, beside the first
    radius: int  # tokens, up, down and sideways, from which a label may come
    top: int  # likest tokens that a label comes from
    temperature: float
    precision: str  # fp32 | bf16 | auto, of the ViT

    def __post_init__(self) -> None:
        check_precision("backbone_video.precision", self.precision)
        for name in ("multiple", "top"):
            if getattr(self, name) < 1:
                raise ValueError(f"backbone_video.{name} is {getattr(self, name)}; it must be at least 1")
        if self.size < self.multiple:
            raise ValueError(f"backbone_video.size is {self.size}; it must be at least multiple, {self.multiple}")
        if self.context < 0 or self.radius < 0 or self.temperature <= 0:
            raise ValueError("backbone_video: context and radius must be at least 0, temperature above 0")


def input_size(size: tuple[int, int], p: BackboneVideo) -> tuple[int, int]:
    """(H, W) of a frame to what the ViT sees."""
    longest = max(size) * p.size // min(size) // p.multiple * p.multiple
    return (p.size, longest) if size[0] <= size[1] else (longest, p.size)


def carry(target: Tensor, sources: Tensor, labels: Tensor, p: BackboneVideo) -> Tensor:
    """A frame's soft labels from those of the context: means over the `top` likest tokens of all frames together.

    Args:
        target: [h, w, D], rows of length 1.
        sources: [R, h, w, D].
        labels: [R, h, w, C].

    Returns:
        [h, w, C], sums as the labels' do (1). Tokens exactly as like as the last one taken are taken too.
    """
    rows, cols, _ = target.shape
    at = torch.arange(cols, device=target.device)
    near = (at[:, None] - at).abs() <= p.radius  # [w, w]
    found = []
    for row in range(rows):  # one row of tokens at a time: N x N likenesses of a large frame would not fit
        window = slice(max(0, row - p.radius), row + p.radius + 1)
        cosine = torch.einsum("cd,rhwd->crhw", target[row], sources[:, window])  # [w, R, window, w]
        weight = ((cosine / p.temperature).exp() * near[:, None, None]).flatten(1)  # [w, sources]
        least = weight.topk(min(p.top, weight.shape[1]), 1).values[:, -1:]
        weight = weight.masked_fill(weight < least, 0)
        found.append(weight / weight.sum(1, keepdim=True) @ labels[:, window].flatten(0, 2))  # [w, C]
    return torch.stack(found)


def propagate(frames: Iterable[Tensor], first: Tensor, p: BackboneVideo) -> Iterator[Tensor]:
    """Soft labels [h, w, C] of each frame after the first; frames as tokens [h, w, D] of length 1, first [h, w, C]."""
    past: deque[tuple[Tensor, Tensor]] = deque(maxlen=p.context)
    start: tuple[Tensor, Tensor] | None = None
    for frame in frames:
        if start is None:
            start = (frame, first)
            continue
        sources, labels = zip(start, *past, strict=True)
        carried = carry(frame, torch.stack(sources), torch.stack(labels), p)
        past.append((frame, carried))
        yield carried


def enlarge(soft: Tensor, patch: int, size: tuple[int, int]) -> np.ndarray:
    """Soft labels [h, w, C] to a label map (H, W) uint8: bilinear, each label from 0 to 1, the largest, nearest neighbour."""
    large = F.interpolate(soft.permute(2, 0, 1)[None], scale_factor=patch, mode="bilinear", align_corners=False)[0]  # [C, ., .]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    large = torch.where(high > 0, (large - low) / (high - low).clamp_min(1e-12), large)
    labels = large.argmax(0).to(torch.uint8).cpu().numpy()
    return np.array(Pillow.fromarray(labels).resize(size[::-1], Pillow.Resampling.NEAREST))


@torch.no_grad()
def follow(p: BackboneVideo, model: VisionTransformer, sequence: Sequence, first: np.ndarray) -> np.ndarray:
    """Label maps [T, H, W] uint8 of a sequence, from that of its first frame, first [H, W] uint8 (void: background)."""
    device, size = environment.device(), input_size((first.shape[0], first.shape[1]), p)
    patch: int = model.patch_embed.patch_size[0]
    known = np.where(first == IGNORE_LABEL, 0, first).astype(np.uint8)
    grid = (size[1] // patch, size[0] // patch)
    small = torch.from_numpy(np.array(Pillow.fromarray(known).resize(grid, Pillow.Resampling.NEAREST))).long()
    one_hot = F.one_hot(small, int(known.max()) + 1).float().to(device)  # [h, w, C]

    def frames() -> Iterator[Tensor]:
        for path in sequence.frames:
            x = batching.to_tensor(photos.resize(photos.open_rgb(path), size))[None].to(device)
            yield F.normalize(sets.tokens(model, x, p.precision)[0].permute(1, 2, 0), dim=-1)

    maps = [enlarge(soft, patch, (first.shape[0], first.shape[1])) for soft in propagate(frames(), one_hot, p)]
    return np.stack([known, *maps])
