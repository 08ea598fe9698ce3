"""Object masks of an image, from what a self-supervised ViT finds alike: one (the paper), or several; and two baselines.

MaskDistill (Van Gansbeke et al., arXiv:2206.06363), section 3.2. Two graphs are read off the last attention
layer: how much the CLS token attends to each patch (Eq. 1), and how alike each pair of patches is (Eq. 2). The
patch that CLS likes best is the source; the proposals that resemble it vote on every other patch; the patches
with a positive vote are the object. The N x N graph is never made: its row s is K k_s, and the sum of its rows
over the voters is K (sum of k_i), two products of O(N d). (Only `rank: degree` has to see all its signs.)
What the objects leave of an image can be mined again (`regions`).

Shapes: B images, H heads, N patches (row-major over a grid of rows x cols), d channels of a head, D = H d.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from unseg.engine.precision import check_precision

RANKS = ("logits", "softmax", "degree")
METHODS = ("maskdistill", "attention", "lost")


@dataclass(frozen=True)
class Mining:
    """The `mine` group of params.yaml."""

    method: str  # maskdistill | attention | lost: the last two are the baselines of Table 3
    mass: float  # attention: the share of the heads' attention that the mask holds, in (0, 1]
    patches: int  # lost: proposals
    objects: int  # masks an image at the most; 1 is the paper
    stop: float  # no further object where its source is like more than this share of what is left, in (0, 1]
    resize: int  # shorter side, pixels
    keep: float  # share of the patches that are proposals, in (0, 1]
    rank: str  # logits | softmax | degree: how patches are ranked as proposals
    center: bool  # subtract the image's mean key first
    component: bool  # keep only the 4-connected region that holds the source
    precision: str  # fp32 | bf16 | auto, of the ViT

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"mine.method is {self.method!r}; it must be one of {', '.join(METHODS)}")
        if min(self.patches, self.objects) < 1:
            raise ValueError("mine.patches and mine.objects must be at least 1")
        for name in ("mass", "stop"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"mine.{name} is {getattr(self, name)}; it must be above 0 and at most 1")
        if self.resize < 1:
            raise ValueError(f"mine.resize is {self.resize}; it must be at least 1 pixel")
        check_precision("mine.precision", self.precision)
        if self.rank not in RANKS:
            raise ValueError(f"mine.rank is {self.rank!r}; it must be one of {', '.join(RANKS)}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"mine.keep is {self.keep}; it must be above 0 and at most 1")


class Mined(NamedTuple):
    masks: Tensor  # [B, N] bool
    source: Tensor  # [B] int64, patch index
    similar_fraction: Tensor  # [B], share of the patches that are like the source


def ranking(query: Tensor, keys: Tensor, rank: str, center: bool) -> Tensor:
    """How good a proposal each patch is.

    Args:
        query, keys: as in `mine`, keys not centred.
        rank: logits, the CLS token's attention before its softmax, the mean over heads (Eq. 1). softmax, after it, so
            that a head that prefers the wide background says less of each patch (docs/spec/, B.1.4). degree, without
            CLS: a patch is the better, the fewer patches its key points along with (LOST, Simeoni et al. 2021, Eq. 1).
        center: of degree's keys.

    Returns:
        [B, N], more is better.
    """
    if rank == "degree":
        rows = concatenated(keys, center)
        return torch.stack([-(k @ k.T >= 0).sum(1) for k in rows])  # image by image: one N x N matrix at a time
    attention = torch.einsum("bhd,bhnd->bhn", query, keys)
    if rank == "softmax":
        attention = (attention / keys.shape[3] ** 0.5).softmax(2)
    return attention.mean(1)


def concatenated(keys: Tensor, center: bool) -> Tensor:
    """[B, H, N, d] to [B, N, D]: a product of whole rows is the sum over heads, H times the mean, of the same sign."""
    keys = keys.transpose(1, 2).flatten(2)
    return keys - keys.mean(1, keepdim=True) if center else keys


def mine(query: Tensor, keys: Tensor, keep: float, center: bool, rank: str = "logits", count: int | None = None) -> Mined:
    """Find one object in each image (section 3.2, Eq. 1 and 2).

    Args:
        query: [B, H, d], the CLS token's.
        keys: [B, H, N, d], the patches' keys; CLS is not among them.
        keep: share of the patches that are proposals; at least one is.
        center: subtract each image's mean key before the affinity between patches. Not in the paper: where all keys
            share a large common part, as early in training, every affinity is positive and the mask the whole image.
        rank: how proposals are ranked; the paper's is logits.
        count: of proposals, in place of keep.

    Returns:
        The masks, which always hold their source, and the sources. Ties go to the lower patch index.
    """
    # A stable sort, not topk: topk may break ties differently on another device.
    order = ranking(query, keys, rank, center).argsort(dim=1, descending=True, stable=True)  # [B, N]
    keys = concatenated(keys, center)
    source, nodes = order[:, :1], order[:, : count or max(1, int(keep * keys.shape[1]))]  # [B, 1], [B, P]
    proposed = torch.zeros_like(order, dtype=torch.bool).scatter(1, nodes, True)
    similarity = keys @ keys.take_along_dim(source[..., None], 1).transpose(1, 2)  # [B, N, 1], A_I[s, j]
    alike = similarity > 0  # [B, N, 1]
    voters = proposed[..., None] & alike
    votes = keys @ (keys.transpose(1, 2) @ voters.to(keys))  # [B, N, 1], sum over voters of A_I[i, j]
    masks = (votes.squeeze(2) > 0).scatter(1, source, True)
    return Mined(masks, source.squeeze(1), alike.squeeze(2).float().mean(1))


def attended(query: Tensor, keys: Tensor, mass: float) -> Mined:
    """The baseline DINO (MaskDistill, A.4): the fewest patches that hold `mass` of the CLS token's attention.

    Each head's attention is that after its softmax, over the patches alone; heads are summed. Source: the patch with most.
    """
    attention = ranking(query, keys, "softmax", False)  # [B, N], sums to 1
    found, order = attention.sort(dim=1, descending=True, stable=True)
    kept = found.cumsum(1) - found < mass  # [B, N], by rank: what comes before holds less
    masks = torch.zeros_like(kept).scatter(1, order, kept)
    return Mined(masks, order[:, 0], kept.float().mean(1))


def first(query: Tensor, keys: Tensor, p: Mining) -> Mined:
    """The object of each image by the method of params.yaml. LOST (Simeoni et al. 2021) is `mine` by degree."""
    if p.method == "attention":
        return attended(query, keys, p.mass)
    if p.method == "lost":
        return mine(query, keys, p.keep, p.center, "degree", p.patches)
    return mine(query, keys, p.keep, p.center, p.rank)


def regions(query: Tensor, keys: Tensor, mined: Mined, grid: tuple[int, int], p: Mining) -> list[np.ndarray]:
    """The objects of one image, first of all that in `mined`: each is masked out and what is left mined again.

    It ends with p.objects of them, or where the next source is like more than p.stop of what is left, as the background is
    like most of itself. The paper has one object an image; Wang et al. (CutLER, arXiv:2301.11320, section 3.2) mask out
    and cut again. The criterion is ours.

    Args:
        query: [1, H, d]; keys: [1, H, N, d].
        mined: what `first` gave, of this image alone.
        grid: rows and columns of the N patches.

    Returns:
        Masks of patches [rows, cols] bool, apart from each other.
    """
    found: list[np.ndarray] = []
    left = np.ones(keys.shape[2], bool)  # [N]
    while len(found) < p.objects and left.any():
        if found:
            mined = first(query, keys[:, :, torch.from_numpy(left).to(keys.device)], p)
            if float(mined.similar_fraction[0]) > p.stop:
                break
        places = np.flatnonzero(left)
        mask = np.zeros(keys.shape[2], bool)
        mask[places] = mined.masks[0].cpu().numpy()
        if p.method == "lost" or (p.component and p.method == "maskdistill"):
            mask = region_of(mask.reshape(grid), int(places[int(mined.source[0])])).ravel()
        found.append(mask.reshape(grid))
        left &= ~mask
    return found


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
