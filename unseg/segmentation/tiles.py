"""A segmenter on photographs of any size: overlapping tiles, blended, one band of rows at a time.

The network sees the photograph at its size (the paper), as a square (the published code), or scaled to a shorter side. An
input larger than a tile is cut into tiles. Their probabilities are averaged where they overlap, with weights that fall towards
the inner borders of a tile, so that no seam shows. Memory grows with a band, not with the photograph.

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
NETWORK_LOCK = threading.Lock()  # a network uses all cores, so threads run it one at a time
Span = tuple[int, int]  # start, stop
Band = tuple[int, Tensor]  # the first row, and probabilities [C, h, W] on the CPU


def spans(n: int, tile: int, overlap: int) -> list[Span]:
    """Spans of `tile` pixels, evenly spaced over n, that overlap by at least `overlap`; a single span if n fits into a tile."""
    if n <= tile:
        return [(0, n)]
    count = math.ceil((n - overlap) / (tile - overlap))
    starts = [round(i * (n - tile) / (count - 1)) for i in range(count)]
    return [(s, s + tile) for s in starts]


def weights(parts: list[Span], overlap: int) -> list[Tensor]:
    """One weight per pixel of each span; at each pixel the weights of all spans sum to 1."""
    first, last = parts[0][0], parts[-1][1]
    total, ramps = torch.zeros(last), []
    for start, stop in parts:
        centres = torch.arange(start, stop) + 0.5
        left = torch.ones_like(centres) if start == first else (centres - start) / overlap
        right = torch.ones_like(centres) if stop == last else (stop - centres) / overlap
        ramps.append(torch.minimum(left, right).clamp_max(1))
        total[start:stop] += ramps[-1]
    return [ramp / total[start:stop] for ramp, (start, stop) in zip(ramps, parts, strict=True)]


def blend_tiles(
    net: TrainedSegmenter, pixels: np.ndarray, device: torch.device, tile: int = TILE, overlap: int = OVERLAP
) -> Iterator[Band]:
    """Probabilities of [H, W, 3] uint8 RGB, band by band from the top. A single tile equals `segmenter.probabilities`."""
    row_spans, col_spans = spans(pixels.shape[0], tile, overlap), spans(pixels.shape[1], tile, overlap)

    def predict_tile(rows: Span, cols: Span) -> Tensor:
        x = batching.to_tensor(pixels[slice(*rows), slice(*cols)])
        with NETWORK_LOCK:
            return probabilities(net, x[None].to(device))[0].float().cpu()

    if len(row_spans) == len(col_spans) == 1:
        yield 0, predict_tile(row_spans[0], col_spans[0])
        return
    carry = torch.zeros(net.labels, 0, pixels.shape[1])  # sums of earlier bands over the rows that they share with the next
    for i, (rows, row_weights) in enumerate(zip(row_spans, weights(row_spans, overlap), strict=True)):
        band = torch.zeros(net.labels, rows[1] - rows[0], pixels.shape[1])
        for cols, col_weights in zip(col_spans, weights(col_spans, overlap), strict=True):
            band[:, :, slice(*cols)] += predict_tile(rows, cols) * col_weights
        band *= row_weights[:, None]
        band[:, : carry.shape[1]] += carry
        done = (row_spans[i + 1][0] if i + 1 < len(row_spans) else rows[1]) - rows[0]  # rows that no later tile reaches
        yield rows[0], band[:, :done]
        carry = band[:, done:].clone()


def upsample(p: Tensor, size: tuple[int, int], rows: int = TILE) -> Iterator[Band]:
    """[C, h, w] to (H, W), bilinear, band by band. F.interpolate has the same values, but needs memory for all rows."""
    scale = p.shape[1] / size[0]
    for top in range(0, size[0], rows):
        source_rows = ((torch.arange(top, min(top + rows, size[0])) + 0.5) * scale - 0.5).clamp_min(0)  # of p
        upper = source_rows.long().clamp_max(p.shape[1] - 1)
        lower, fraction = (upper + 1).clamp_max(p.shape[1] - 1), (source_rows - upper)[:, None]
        band = torch.lerp(p[:, upper], p[:, lower], fraction)  # [C, rows, w]
        yield top, F.interpolate(band[None], (len(source_rows), size[1]), mode="bilinear", align_corners=False)[0]


def network_size(net: TrainedSegmenter, size: tuple[int, int], input_size: str | int) -> tuple[int, int]:
    """(H, W) at which the network sees a photograph of (H, W); `input_size` as in `predict_bands`."""
    if isinstance(input_size, int):
        return short_side(size, input_size)
    return {"original": size, "square": (net.size, net.size)}[input_size]


def predict_bands(net: TrainedSegmenter, photo: Pillow.Image, input_size: str | int, device: torch.device) -> Iterator[Band]:
    """Probabilities of a photograph at its size, band by band.

    The network sees it at `input_size`: original, square (S x S, aspect ratio ignored), or the shorter side in pixels.
    """
    size = photo.height, photo.width
    resized = network_size(net, size, input_size)
    bands = blend_tiles(net, np.asarray(resize(photo, resized)), device)
    yield from bands if resized == size else upsample(torch.cat([p for _, p in bands], 1), size)


def refine_bands(
    bands: Iterator[Band], pixels: np.ndarray, crf: Crf, margin: int = OVERLAP
) -> Iterator[tuple[int, np.ndarray, Tensor]]:
    """Yield each band's first row, its labels [h, W] uint8 after a CRF, and its probabilities [C, h, W] before it.

    The CRF sees `margin` more rows above and below than it labels. A single band equals `crf.refine`.
    """
    start, labelled = 0, 0  # first row in the buffer; first row without a label
    buffer: Tensor | None = None
    for top, p in bands:
        buffer = p if buffer is None else torch.cat([buffer, p], 1)
        stop = top + p.shape[1]
        end = stop if stop == len(pixels) else max(labelled, stop - margin)
        if end > labelled:
            labels = refine(buffer.numpy(), pixels[start:stop], crf)
            yield labelled, labels[labelled - start : end - start], buffer[:, labelled - start : end - start]
        labelled = end
        first_kept = max(start, labelled - margin)
        buffer, start = buffer[:, first_kept - start :], first_kept
