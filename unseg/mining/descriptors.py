"""The descriptor of an object, from the tokens of its crop: CLS token (MaskDistill, section 3.2), mean of its patches, or both.

The mean is mask pooling (DetCon, Henaff et al., arXiv:2103.10957): a patch counts by the fraction of its pixels inside the mask.
A small ViT's tokens depend on where the patch grid cuts the object; their mean over shifted grids (`embed.shifts`) does so
less. Neither is in the paper.

Shapes: B crops, N patches, p pixels a side of a patch, P prefix tokens (CLS, then registers), D channels.
"""

import torch
from torch import Tensor
from torch.nn import functional

from unseg.engine import batching
from unseg.mining.crops import Embedding
from unseg.models import facets, vit
from unseg.models.vit import ViT


def width(model: ViT, p: Embedding) -> int:
    """Channels of a descriptor."""
    return int(model.embed_dim) * (2 if p.descriptor == "both" else 1)


def describe(model: ViT, pixels: Tensor, inside: Tensor | None, p: Embedding) -> Tensor:
    """The descriptors of crops: [B, D], or [B, 2 D] for both (CLS first, each half of length 1), float32.

    Args:
        pixels: [B, 3, H, W], normalised, H and W multiples of p.
        inside: [B, 1, H, W], the fraction of each pixel in the mask, not all 0; needed for the mean of the patch tokens.
    """
    size = vit.patch_size(model)
    offsets = [i * size // p.shifts for i in range(p.shifts)]  # pixels
    views = [view(model, pixels, inside, p.layer, top, left) for top in offsets for left in offsets]
    cls, mean = (torch.stack(x).mean(0) if len(x) > 1 else x[0] for x in zip(*views, strict=True))
    if p.descriptor == "both":
        return torch.cat([functional.normalize(x, dim=1) for x in (cls, mean)], 1)
    return cls if p.descriptor == "cls" else mean


def view(model: ViT, pixels: Tensor, inside: Tensor | None, layer: int, top: int, left: int) -> tuple[Tensor, Tensor]:
    """The CLS token and the mean patch token inside the mask (without mask, of all patches), both [B, D] float32.

    top, left: pixels of the mean colour (0) that are put before the crop.
    """
    size = vit.patch_size(model)
    tokens = facets.block_tokens(model, batching.pad_to(functional.pad(pixels, (left, 0, top, 0)), size), layer).float()
    patches = tokens[:, model.num_prefix_tokens :]  # [B, N, D]
    if inside is None:
        return tokens[:, 0], patches.mean(1)
    weights = functional.avg_pool2d(batching.pad_to(functional.pad(inside, (left, 0, top, 0)), size), size).flatten(1)  # [B, N]
    return tokens[:, 0], (patches * (weights / weights.sum(1, keepdim=True))[..., None]).sum(1)
