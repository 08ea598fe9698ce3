"""One object mask per image, from what a self-supervised ViT finds alike.

MaskDistill (Van Gansbeke et al., arXiv:2206.06363), section 3.2. Two graphs are read off the last attention
layer: how much the CLS token attends to each patch (Eq. 1), and how alike each pair of patches is (Eq. 2). The
patch that CLS likes best is the source; the proposals that resemble it vote on every other patch; the patches
with a positive vote are the object. The N x N graph is never made: its row s is K k_s, and the sum of its rows
over the voters is K (sum of k_i), two products of O(N d).

Shapes: B images, H heads, N patches (row-major over a grid of rows x cols), d channels of a head, D = H d.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor


@dataclass(frozen=True)
class Mining:
    """The `mine` group of params.yaml."""

    resize: int  # shorter side, pixels
    keep: float  # share of the patches that are proposals, in (0, 1]
    center: bool  # subtract the image's mean key first
    component: bool  # keep only the 4-connected region that holds the source
    precision: str  # fp32 | bf16, of the ViT

    def __post_init__(self) -> None:
        if self.resize < 1:
            raise ValueError(f"mine.resize is {self.resize}; it must be at least 1 pixel")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"mine.precision is {self.precision!r}; it must be fp32 or bf16")
        if not 0 < self.keep <= 1:
            raise ValueError(f"mine.keep is {self.keep}; it must be above 0 and at most 1")


class Mined(NamedTuple):
    masks: Tensor  # [B, N] bool
    source: Tensor  # [B] int64, patch index


def mine(query: Tensor, keys: Tensor, keep: float, center: bool) -> Mined:
    """Find one object in each image (section 3.2, Eq. 1 and 2).

    Args:
        query: [B, H, d], the CLS token's.
        keys: [B, H, N, d], the patches' keys; CLS is not among them.
        keep: share of the patches that are proposals; at least one is.
        center: subtract each image's mean key before the affinity between patches. Not in the paper: where all keys
            share a large common part, as early in training, every affinity is positive and the mask the whole image.

    Returns:
        The masks, which always hold their source, and the sources. Ties go to the lower patch index.
    """
    attention = torch.einsum("bhd,bhnd->bn", query, keys)  # [B, N], Eq. 1; the mean's 1/H changes no order
    keys = keys.transpose(1, 2).flatten(2)  # [B, N, D]: the sum over heads is in the product of whole rows
    if center:
        keys = keys - keys.mean(1, keepdim=True)
    # A stable sort, not topk: topk may break ties differently on another device.
    proposals = attention.argsort(dim=1, descending=True, stable=True)[:, : max(1, int(keep * keys.shape[1]))]  # [B, P]
    source = proposals[:, 0]  # [B]
    proposed = keys.gather(1, proposals[..., None].expand(-1, -1, keys.shape[2]))  # [B, P, D]
    voters = (proposed @ proposed[:, 0, :, None]) > 0  # [B, P, 1], A_I[s, j] > 0
    votes = keys @ (proposed * voters).sum(1)[..., None]  # [B, N, 1], sum over voters of A_I[i, j]
    masks = votes.squeeze(2) > 0
    return Mined(masks.scatter(1, source[:, None], True), source)


def region_of(mask: np.ndarray, source: int) -> np.ndarray:
    """The 4-connected region of mask [rows, cols] bool that holds patch `source` (row-major), which must be in mask."""
    regions, _ = ndimage.label(mask)
    return np.asarray(regions == regions.flat[source])


def to_pixels(mask: np.ndarray, resized: tuple[int, int], size: tuple[int, int], patch: int) -> np.ndarray:
    """A mask of patches to a mask of pixels, nearest neighbour.

    Args:
        mask: [rows, cols] bool over the padded image.
        resized: (H, W) of the image that the ViT saw, before padding, pixels.
        size: (H, W) of the original image.
        patch: side of a patch, pixels.

    Returns:
        [H, W] bool; the padding falls away.
    """
    # In whole numbers: where a pixel's centre lies on the border of two patches, no rounding may choose between them.
    rows, cols = ((2 * np.arange(n) + 1) * m // (2 * n) // patch for n, m in zip(size, resized, strict=True))
    return mask[rows[:, None], cols]
