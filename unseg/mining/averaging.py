"""Facets averaged over views: the resized photograph, its mirror image, and both at other scales (`mine.flip`, `mine.scales`).

Each view's facets are brought back to the grid of scale 1, un-mirrored, by bilinear interpolation; all rules run on their
average. The query has no place, so it is only averaged. Keys with rotary embeddings (DINOv3) keep the angles of the view in
which they were read.

Shapes: B images, H heads, N patches (row-major over a grid of rows x cols), d channels of a head.
"""

from torch import Tensor
from torch.nn import functional as F

from unseg.mining.affinity import Mining
from unseg.models import facets, vit
from unseg.models.facets import Facets
from unseg.models.vit import ViT


def read(model: ViT, pixels: Tensor, p: Mining) -> Facets:
    """Facets of images [B, 3, rows * patch, cols * patch], float32; the method head has the tokens of the last block."""
    facet, layer = ("tokens", -1) if p.method == "head" else (p.facet, p.layer)
    patch = vit.patch_size(model)
    grid = (pixels.shape[2] // patch, pixels.shape[3] // patch)
    views = [(scale, mirrored) for scale in p.scales for mirrored in ((False, True) if p.flip else (False,))]
    total: list[Tensor] = []
    for scale, mirrored in views:
        size = [max(1, round(scale * n)) * patch for n in grid]
        x = pixels
        if (size[0], size[1]) != pixels.shape[2:]:
            x = F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)
        query, keys, features = (t.float() for t in facets.read(model, x.flip(3) if mirrored else x, facet, layer))
        cells = (size[0] // patch, size[1] // patch)
        view = [query, to_grid(keys, cells, grid, mirrored), to_grid(features, cells, grid, mirrored)]
        total = [a + b for a, b in zip(total, view, strict=True)] if total else view
    return Facets(*total) if len(views) == 1 else Facets(*(x / len(views) for x in total))


def to_grid(x: Tensor, cells: tuple[int, int], grid: tuple[int, int], mirrored: bool) -> Tensor:
    """[B, H, rows * cols of `cells`, d] to [B, H, N, d] on `grid`, un-mirrored."""
    if cells == grid and not mirrored:
        return x
    heads = x.shape[1]
    maps = x.transpose(2, 3).flatten(1, 2).unflatten(2, cells)  # [B, H d, rows, cols]
    maps = maps.flip(3) if mirrored else maps
    maps = maps if cells == grid else F.interpolate(maps, grid, mode="bilinear", align_corners=False)
    out: Tensor = maps.flatten(2).unflatten(1, (heads, -1)).transpose(2, 3).contiguous()
    return out


def pixels(p: Mining, limit: int) -> int:
    """Pixels of a batch at scale 1, so that no view has more than `limit`."""
    return int(limit / max(1.0, max(p.scales)) ** 2)
