"""An object mask of an image from the affinities of a self-supervised ViT's patches: MaskDistill's rule, and two baselines.

MaskDistill (Van Gansbeke et al., arXiv:2206.06363), section 3.2. The last attention layer gives two quantities: the attention
of the CLS token to each patch (Eq. 1) and the affinity of each pair of patches (Eq. 2). The patch with the most attention is
the source; the proposals that are similar to it vote on every other patch; the patches with a positive vote are the object.
The N x N graph is never built: its row s is K k_s, and the sum of the voters' rows is K (sum of k_i), two products of O(N d).
(Only `rank: degree` needs all its signs.) Queries, values or tokens may take the place of the keys in Eq. 2 (`mine.facet`).
`methods` chooses between this and the other modules of mining.

Shapes: B images, H heads, N patches (row-major over a grid of rows x cols), P proposals, d channels of a head, D = H d.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import MinLen
from scipy import ndimage
from torch import Tensor

from unseg.core.params import PositiveFloat, PositiveFraction, PositiveInt, Precision
from unseg.models.weights import RANDOM_INIT


@dataclass(frozen=True)
class Mining:
    """The `mine` group of params.yaml."""

    method: Literal["maskdistill", "attention", "lost", "tokencut", "regions", "head"]  # attention, lost: baselines of Table 3
    head: str  # head: the file of weights; or weights.RANDOM_INIT for none
    mass: PositiveFraction  # attention: fraction of the heads' attention inside the mask
    patches: PositiveInt  # lost: number of proposals
    objects: PositiveInt  # masks an image, at most; 1 is the paper
    stop: PositiveFraction  # no further object if its source is similar to more than this fraction of the remaining patches
    resize: PositiveInt  # shorter side, pixels
    facet: Literal["queries", "keys", "values", "tokens"]  # whose products are the affinity
    layer: int  # block of the ViT, from 0; negative: from the last one, -1
    flip: bool  # average the facet over the photograph and its mirror image
    scales: Annotated[list[PositiveFloat], MinLen(1)]  # and over these multiples of `resize`
    normalize: bool  # cosine similarity instead of the inner product
    threshold: float | Literal["otsu"]  # affinity above which patches belong together; otsu: chosen for each image
    keep: PositiveFraction  # fraction of the patches that are proposals
    rank: Literal["logits", "softmax", "degree"]  # how patches are ranked as proposals
    center: bool  # subtract the image's mean of the facet first
    component: bool  # keep only the 4-connected region of the source
    precision: Precision  # of the ViT

    def __post_init__(self) -> None:
        if self.method == "head" and self.head == RANDOM_INIT:
            raise ValueError("mine.method is head, so mine.head must name a head, e.g. models/foreground.safetensors")


class ObjectMasks(NamedTuple):
    masks: Tensor  # [B, N] bool, one object of each image
    source: Tensor  # [B] int64, patch index
    similar_fraction: Tensor  # [B], fraction of the patches that are similar to the source


def rank_patches(query: Tensor, keys: Tensor, rank: str, rows: Tensor | None = None, bound: float = 0.0) -> Tensor:
    """Score each patch as a proposal: [B, N], higher is better.

    Args:
        query, keys: as in `mine`.
        rank: logits, the attention of the CLS token before its softmax, the mean over heads (Eq. 1). softmax, after it, so
            that a head that attends to a large background counts less per patch (docs/spec/, B.1.4). degree, without CLS:
            the fewer patches have an affinity of at least `bound` to a patch, the better (LOST, Simeoni et al. 2021, Eq. 1,
            where it is 0).
        rows: for degree: of `affinity_rows`.
    """
    if rank == "degree" and rows is not None:
        return torch.stack([-(k @ k.T >= bound).sum(1) for k in rows])  # image by image: one N x N matrix at a time
    attention = torch.einsum("bhd,bhnd->bhn", query, keys)
    if rank == "softmax":
        attention = (attention / keys.shape[3] ** 0.5).softmax(2)
    return attention.mean(1)


def affinity_rows(features: Tensor, center: bool, normalize: bool) -> Tensor:
    """[B, H, N, d] to [B, N, D], whose products are the affinities: the sum over heads, H times the mean, of the same sign.

    center: subtract each image's mean. normalize: then scale each row to length 1 (0 stays 0): cosine similarity.
    """
    rows = features.transpose(1, 2).flatten(2)
    rows = rows - rows.mean(1, keepdim=True) if center else rows
    return torch.nn.functional.normalize(rows, dim=2) if normalize else rows


def mine(
    query: Tensor,
    keys: Tensor,
    keep: float,
    center: bool,
    rank: str = "logits",
    count: int | None = None,
    features: Tensor | None = None,
    normalize: bool = False,
    threshold: float | str = 0.0,
) -> ObjectMasks:
    """Find one object in each image (section 3.2, Eq. 1 and 2). Its mask contains the source.

    Ties go to the patch of lower index.

    Args:
        query: [B, H, d] of the CLS token.
        keys: [B, H, N, d] of the patches, without CLS.
        keep: fraction of the patches that are proposals; at least one patch is.
        center: subtract each image's mean feature before the affinity. Not in the paper: if all keys have a large common
            part, as early in training and in DINOv2, every affinity is positive and the mask covers the whole image.
        rank: how proposals are ranked; the paper's is logits.
        count: number of proposals, instead of keep.
        features: [B, H', N, d'] whose products are the affinity (Eq. 2); None: the keys (paper).
        normalize: the affinity is the cosine of two rows (TokenCut, arXiv:2202.11539, Eq. 4), not their inner product (paper).
        threshold: of the affinity, the mean over heads or the cosine: patches above it are similar, and a patch whose mean
            over the voters is above it is the object's. 0 in the paper; 0.2 in TokenCut, of cosines. otsu: of each image, by
            `otsu` of the affinities of the source to all patches; the rank degree then counts at 0, as LOST does.
    """
    features = keys if features is None else features
    rows = affinity_rows(features, center, normalize)  # [B, N, D]
    fixed = 0.0 if isinstance(threshold, str) else threshold
    bound: float | Tensor = fixed if normalize else fixed * features.shape[1]  # rows give the sum over heads
    # A stable sort instead of topk, which may break ties differently on another device.
    order = rank_patches(query, keys, rank, rows, float(bound)).argsort(dim=1, descending=True, stable=True)  # [B, N]
    source, proposals = order[:, :1], order[:, : count or max(1, int(keep * keys.shape[2]))]  # [B, 1], [B, P]
    is_proposal = torch.zeros_like(order, dtype=torch.bool).scatter(1, proposals, True)
    affinity = rows @ rows.take_along_dim(source[..., None], 1).transpose(1, 2)  # [B, N, 1], A_I[s, j]
    if threshold == "otsu":
        bound = otsu(affinity.squeeze(2))[:, None, None]  # [B, 1, 1]
    similar = affinity > bound  # [B, N, 1]
    voters = is_proposal[..., None] & similar
    votes = rows @ (rows.transpose(1, 2) @ voters.to(rows))  # [B, N, 1], sum over voters of A_I[i, j]
    masks = (votes > bound * voters.sum(1, keepdim=True)).squeeze(2).scatter(1, source, True)
    return ObjectMasks(masks, source.squeeze(1), similar.squeeze(2).float().mean(1))


def otsu(values: Tensor) -> Tensor:
    """The threshold [B] of values [B, N] whose two classes differ most (Otsu 1979: the largest variance between them).

    Exact, over all N - 1 splits of the sorted values, midway between two of them; OpenCV's takes 8-bit histograms of one image.
    The lower of equal splits; of equal values that value, so that none is above it.
    """
    ordered, count = values.double().sort(dim=1).values, values.shape[1]
    if count == 1:
        return values[:, 0]
    below = torch.arange(1, count, device=values.device)  # number of values in the lower class
    sums = ordered.cumsum(1)
    lower, upper = sums[:, :-1] / below, (sums[:, -1:] - sums[:, :-1]) / (count - below)
    split = (below * (count - below) * (upper - lower) ** 2).argmax(1, keepdim=True)  # [B, 1]
    thresholds = (ordered.gather(1, split) + ordered.gather(1, split + 1)) / 2
    return thresholds.squeeze(1).to(values)


def mine_attention(query: Tensor, keys: Tensor, mass: float) -> ObjectMasks:
    """The baseline DINO (MaskDistill, A.4): the fewest patches that hold the fraction `mass` of the CLS token's attention.

    The attention is after the softmax over the patches, the mean over heads. The source is the patch with the most.
    """
    attention = rank_patches(query, keys, "softmax")  # [B, N], sums to 1
    values, order = attention.sort(dim=1, descending=True, stable=True)
    kept = values.cumsum(1) - values < mass  # [B, N], by rank: the patches before hold less
    masks = torch.zeros_like(kept).scatter(1, order, kept)
    return ObjectMasks(masks, order[:, 0], kept.float().mean(1))


def connected_region(mask: np.ndarray, source: int) -> np.ndarray:
    """The 4-connected region of mask [rows, cols] bool with patch `source` (row-major), which must be in the mask."""
    regions, _ = ndimage.label(mask)
    return np.asarray(regions == regions.flat[source])


def to_pixels(mask: np.ndarray, resized: tuple[int, int], size: tuple[int, int], patch: int) -> np.ndarray:
    """Scale a mask of patches to the photograph, by nearest neighbour: [H, W] bool, without the padding.

    Args:
        mask: [rows, cols] bool over the padded image.
        resized: (H, W) of the image that the ViT saw, before padding, pixels.
        size: (H, W) of the original image.
        patch: side of a patch, pixels.
    """
    # Whole numbers, because rounding must not decide for a pixel whose centre lies on the border of two patches.
    rows, cols = ((2 * np.arange(n) + 1) * m // (2 * n) // patch for n, m in zip(size, resized, strict=True))
    return mask[rows[:, None], cols]
