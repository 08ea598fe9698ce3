"""A segmenter on photographs of any size: overlapping tiles, blended, a band of rows at a time.

The network sees the photograph at its own size (the paper), as a square (the published code), or scaled to a shorter side.
What is larger than a tile is cut into tiles whose probabilities are averaged where they overlap, with weights that fall
towards a tile's inner borders, so that no seam shows. Memory grows with a band, not with the photograph.

Shapes: H rows, W columns of the photograph; h of a band; C labels; n pixels along a side.
"""

import math
import threading
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor
from torch.nn import functional as F

from unseg.data.photos import resize, short_side
from unseg.engine import batching
from unseg.segmentation.crf import Crf, refine
from unseg.segmentation.segmenter import TrainedSegmenter, probabilities

TILE, OVERLAP = 768, 128  # pixels
TURN = threading.Lock()  # of the network: it has all cores, so threads that predict take turns with it, and with nothing else
Span = tuple[int, int]  # start, stop
Band = tuple[int, Tensor]  # the first row, and probabilities [C, h, W] on the CPU


def spans(n: int, tile: int, overlap: int) -> list[Span]:
    """Stretches of `tile` pixels, evenly spread over n, that share at least `overlap`; one of n where that is no more."""
    if n <= tile:
        return [(0, n)]
    count = math.ceil((n - overlap) / (tile - overlap))
    starts = [round(i * (n - tile) / (count - 1)) for i in range(count)]
    return [(s, s + tile) for s in starts]


def weights(parts: list[Span], overlap: int) -> list[Tensor]:
    """Of each span, a weight a pixel; at every pixel the weights of all spans sum to 1."""
    ends = parts[0][0], parts[-1][1]
    total, drawn = torch.zeros(ends[1]), []
    for start, stop in parts:
        at = torch.arange(start, stop) + 0.5
        left = torch.ones_like(at) if start == ends[0] else (at - start) / overlap
        right = torch.ones_like(at) if stop == ends[1] else (stop - at) / overlap
        drawn.append(torch.minimum(left, right).clamp_max(1))
        total[start:stop] += drawn[-1]
    return [w / total[start:stop] for w, (start, stop) in zip(drawn, parts, strict=True)]


def blended(
    net: TrainedSegmenter, pixels: np.ndarray, device: torch.device, tile: int = TILE, overlap: int = OVERLAP
) -> Iterator[Band]:
    """Probabilities of [H, W, 3] uint8 RGB, band by band from the top; a single tile is what `probabilities` gives."""
    down, across = spans(pixels.shape[0], tile, overlap), spans(pixels.shape[1], tile, overlap)

    def one(rows: Span, cols: Span) -> Tensor:
        x = batching.to_tensor(pixels[slice(*rows), slice(*cols)])
        with TURN:
            return probabilities(net, x[None].to(device))[0].float().cpu()

    if len(down) == len(across) == 1:
        yield 0, one(down[0], across[0])
        return
    carried = torch.zeros(net.labels, 0, pixels.shape[1])  # sums of the rows that the band shares with earlier ones
    for i, (rows, falls) in enumerate(zip(down, weights(down, overlap), strict=True)):
        band = torch.zeros(net.labels, rows[1] - rows[0], pixels.shape[1])
        for cols, slopes in zip(across, weights(across, overlap), strict=True):
            band[:, :, slice(*cols)] += one(rows, cols) * slopes
        band *= falls[:, None]
        band[:, : carried.shape[1]] += carried
        done = (down[i + 1][0] if i + 1 < len(down) else rows[1]) - rows[0]  # no later tile reaches these rows
        yield rows[0], band[:, :done]
        carried = band[:, done:].clone()


def enlarged(p: Tensor, size: tuple[int, int], rows: int = TILE) -> Iterator[Band]:
    """[C, h, w] to (H, W), bilinear as F.interpolate does it, `rows` at a time."""
    scale = p.shape[1] / size[0]
    for top in range(0, size[0], rows):
        at = ((torch.arange(top, min(top + rows, size[0])) + 0.5) * scale - 0.5).clamp_min(0)  # rows of p
        upper = at.long().clamp_max(p.shape[1] - 1)
        lower, share = (upper + 1).clamp_max(p.shape[1] - 1), (at - upper)[:, None]
        band = torch.lerp(p[:, upper], p[:, lower], share)  # [C, rows, w]
        yield top, F.interpolate(band[None], (len(at), size[1]), mode="bilinear", align_corners=False)[0]


def looked_at(net: TrainedSegmenter, size: tuple[int, int], seen: str | int) -> tuple[int, int]:
    """(H, W) at which the network sees a photograph of (H, W); `seen` as in `bands`."""
    return {"original": size, "square": (net.size, net.size)}[seen] if isinstance(seen, str) else short_side(size, seen)


def bands(net: TrainedSegmenter, photo: Pillow.Image, seen: str | int, device: torch.device) -> Iterator[Band]:
    """Probabilities of a photograph at its own size, band by band.

    Args:
        seen: what the network sees: original, square (its training size, aspect ignored), or pixels of the shorter side.
    """
    size = photo.height, photo.width
    want = looked_at(net, size, seen)
    drawn = blended(net, np.asarray(resize(photo, want)), device)
    yield from drawn if want == size else enlarged(torch.cat([p for _, p in drawn], 1), size)


def refined(
    drawn: Iterator[Band], pixels: np.ndarray, crf: Crf, margin: int = OVERLAP
) -> Iterator[tuple[int, np.ndarray, Tensor]]:
    """Each band's first row, its labels [h, W] uint8 after a CRF, and its probabilities [C, h, W] from before it.

    The CRF sees `margin` rows more than it answers for, above and below. One band, as of a small photograph, is what
    `crf.refine` gives.
    """
    height, start, told = len(pixels), 0, 0  # rows held begin at start; those before told have had their answer
    held: Tensor | None = None
    for top, p in drawn:
        held = p if held is None else torch.cat([held, p], 1)
        stop = top + p.shape[1]
        until = height if stop == height else max(told, stop - margin)
        if until > told:
            labels = refine(held.numpy(), pixels[start:stop], crf)
            yield told, labels[told - start : until - start], held[:, told - start : until - start]
        told = until
        keep = max(start, told - margin)
        held, start = held[:, keep - start :], keep
