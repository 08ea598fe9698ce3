"""The objects of images by the method of params.yaml: one mask an image (the paper) or several.

`affinity` has MaskDistill's rule, DINO's attention and LOST; `tokencut` a normalised cut; these find an object at a time, and
`mine_all` removes it and mines what remains of the image again. `regions` and `foreground` find all at once.

Shapes: B images, H heads, N patches (row-major over a grid of rows x cols), d channels of a head.
"""

import numpy as np
import torch
from torch import Tensor, nn

from unseg.mining import affinity, foreground, regions, tokencut
from unseg.mining.affinity import Mining, ObjectMasks, connected_region
from unseg.models.facets import Facets


def mine_batch(facets: Facets, grid: tuple[int, int], p: Mining, head: nn.Module | None = None) -> list[list[np.ndarray]]:
    """The objects of each image, as disjoint masks of patches [rows, cols] bool; at least one.

    Args:
        facets: query, keys and features of B images.
        grid: rows and columns of the N patches.
        head: of `foreground`, for the method head, on the facets' device.
    """
    images = [Facets(*(x[i : i + 1] for x in facets)) for i in range(len(facets.query))]
    if p.method == "regions":
        return [regions.mine(*image, grid, p) for image in images]
    if p.method == "head":
        assert head is not None
        scores = foreground.logits(head, facets.features.squeeze(1)).cpu().numpy()  # [B, N]
        return [foreground.masks(x.reshape(grid), p.objects, p.component) for x in scores]
    first = ObjectMasks(*(x.cpu() for x in mine_first(facets.query, facets.keys, p, facets.features)))
    mined = [ObjectMasks(*(x[i : i + 1] for x in first)) for i in range(len(images))]
    return [mine_all(query, keys, m, grid, p, features) for (query, keys, features), m in zip(images, mined, strict=True)]


def mine_first(query: Tensor, keys: Tensor, p: Mining, features: Tensor | None = None) -> ObjectMasks:
    """The first object of each image by a method that finds one at a time. LOST (Simeoni et al. 2021) is `mine` by degree.

    Args: as in `affinity.mine`.
    """
    if p.method == "attention":
        return affinity.mine_attention(query, keys, p.mass)
    if p.method == "tokencut":
        return tokencut.mine(keys if features is None else features, p.center, p.threshold)
    rank, count = ("degree", p.patches) if p.method == "lost" else (p.rank, None)
    return affinity.mine(query, keys, p.keep, p.center, rank, count, features, p.normalize, p.threshold)


def mine_all(
    query: Tensor, keys: Tensor, mined: ObjectMasks, grid: tuple[int, int], p: Mining, features: Tensor | None = None
) -> list[np.ndarray]:
    """The objects of one image, as disjoint masks of patches [rows, cols] bool: the remaining patches are mined again.

    It stops after p.objects, or when the next source is similar to more than the fraction p.stop of the remaining patches, as
    background is to most of itself. The paper has one object an image; Wang et al. (CutLER, arXiv:2301.11320, section 3.2)
    mask out and cut again. The criterion is ours.

    Args:
        query, keys, features: as in `mine_first`, with B = 1.
        mined: the result of `mine_first` for this image.
        grid: rows and columns of the N patches.
    """
    masks: list[np.ndarray] = []
    remaining = np.ones(keys.shape[2], bool)  # [N]
    while len(masks) < p.objects and remaining.any():
        if masks:
            kept = torch.from_numpy(remaining).to(keys.device)
            mined = mine_first(query, keys[:, :, kept], p, None if features is None else features[:, :, kept])
            if float(mined.similar_fraction[0]) > p.stop:
                break
        patches = np.flatnonzero(remaining)
        mask = np.zeros(keys.shape[2], bool)
        mask[patches] = mined.masks[0].cpu().numpy()
        if p.method in ("lost", "tokencut") or (p.component and p.method == "maskdistill"):
            mask = connected_region(mask.reshape(grid), int(patches[int(mined.source[0])])).ravel()
        masks.append(mask.reshape(grid))
        remaining &= ~mask
    return masks
