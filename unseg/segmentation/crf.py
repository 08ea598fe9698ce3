"""A fully connected CRF on a segmenter's probabilities (arXiv:1210.5644), by mean field, with one of two methods.

`dense` is pydensecrf: Gaussian filtering on a permutohedral lattice, as in the paper (arXiv:2206.06363, section B).
`conv` is a ConvCRF (arXiv:1805.04777) in tensors, for CPU and GPU. Its smooth kernel is a truncated convolution. Its bilateral
kernel reaches far, so it takes messages only from a grid of every `stride`-th pixel within a window. (The ConvCRF paper
averages the image down instead. The published kernel is so narrow in colour that averaged colours match no pixel.)
Both methods have the same energies and normalise kernels symmetrically. Their labels agree in all but a few pixels.

Shapes: H rows, W columns, N = H W pixels; C labels; M senders: the pixels of the grid.
"""

import math
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unseg.core import optional
from unseg.core.params import NonNegativeFloat, PositiveFloat, PositiveInt

MIN_IMAGES, MAX_WAITING = 100, 8  # per process
MIN_PROBABILITY = 1e-5  # lower bound, so that no energy is infinite
MIN_KERNEL = 0.05  # lower values of the bilateral kernel are set to 0, as for most pairs of pixels, and are not stored
BLOCK = 32  # side of the squares of pixels that search for their senders together
CPU = torch.device("cpu")

with warnings.catch_warnings():  # torch warns once per process that CSR tensors are in beta
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.empty(0, dtype=torch.int64), torch.empty(0), (1, 1))


@dataclass(frozen=True)
class Crf:
    """The `crf` group of params.yaml; the published code has dense, 10, 1, 3, 67, 3, 4 (docs/spec/maskdistill.md, B.5.4)."""

    method: Literal["dense", "conv"]  # dense (paper): pydensecrf; conv: tensors
    iterations: PositiveInt  # of mean field
    smooth_xy: PositiveFloat  # pixels; deviation of the kernel for equal labels nearby
    smooth_weight: NonNegativeFloat
    bilateral_xy: PositiveFloat  # pixels; deviation of the kernel for equal labels nearby in similar colours
    bilateral_rgb: PositiveFloat  # deviation in colour, of 255
    bilateral_weight: NonNegativeFloat
    window: PositiveInt  # pixels; conv: bilateral messages come from at least this far in each direction
    stride: PositiveInt  # pixels; conv: step of the grid of senders, each of which represents its stride x stride square


def refine(probabilities: np.ndarray, image: np.ndarray, crf: Crf, device: torch.device = CPU) -> np.ndarray:
    """Labels after mean-field inference.

    Labels that are improbable in every pixel are left out. They have the same energy everywhere and win nowhere, and time is
    proportional to the number of labels.

    Args:
        probabilities: [C, H, W] float32, C up to 256.
        image: [H, W, 3] uint8 RGB. The order of channels changes some 0.5 % of the pixels with dense, none with conv.
        device: for conv; without sparse tensors (mps) it is the CPU. dense always uses the CPU.

    Returns [H, W] uint8. Raises InputError if the method is dense and pydensecrf is not installed.
    """
    count = len(probabilities)
    if count > 256:
        raise ValueError(f"{count} labels; a label map holds 256")
    present = np.flatnonzero(probabilities.reshape(count, -1).max(1) > MIN_PROBABILITY)
    if len(present) < 2:
        return np.asarray(probabilities.argmax(0), np.uint8)
    if crf.method == "dense":
        refined = dense(probabilities[present], image, crf)
    else:
        device = device if device.type == "cuda" else CPU
        p = torch.from_numpy(probabilities[present]).to(device)
        refined = conv(p, torch.from_numpy(np.array(image)).to(device), crf).argmax(0).cpu().numpy()
    return np.asarray(present[refined], np.uint8)


def dense(p: np.ndarray, image: np.ndarray, crf: Crf) -> np.ndarray:
    """pydensecrf's labels [H, W] of probabilities [C, H, W] and an image [H, W, 3]."""
    optional.check_crf_method("dense")
    from pydensecrf.densecrf import DenseCRF2D
    from pydensecrf.utils import unary_from_softmax

    count, height, width = p.shape
    field = DenseCRF2D(width, height, count)
    field.setUnaryEnergy(unary_from_softmax(p, clip=MIN_PROBABILITY))  # [C, N]
    field.addPairwiseGaussian(sxy=crf.smooth_xy, compat=crf.smooth_weight)
    colours = np.array(image[..., ::-1], np.uint8, order="C")  # BGR, as published; a copy: it must be writable
    field.addPairwiseBilateral(sxy=crf.bilateral_xy, srgb=crf.bilateral_rgb, rgbim=colours, compat=crf.bilateral_weight)
    return np.asarray(np.array(field.inference(crf.iterations)).argmax(0).reshape(height, width))


@torch.no_grad()
def conv(p: Tensor, image: Tensor, crf: Crf) -> Tensor:
    """Probabilities [C, H, W] after mean field: Q = softmax(log p + sum over both kernels of weight D K D Q), D = (K 1)^-1/2.

    p is [C, H, W] float32 on any device, image [H, W, 3] uint8 RGB on the same device.
    """
    height, width = p.shape[1:]
    log_p = p.clamp_min(MIN_PROBABILITY).log()
    kernel = gaussian_kernel(crf.smooth_xy, min(max(height, width), math.ceil(3 * crf.smooth_xy))).to(p.device)  # [k, k]
    smooth_scale = smooth(torch.ones_like(p[:1]), kernel).rsqrt()  # [1, H, W]
    order, senders, weights, self_weights = bilateral_weights(image, crf)  # [N], [M], [N, M], [N]
    row_of_pixel = order.argsort()  # [N]
    q = log_p.softmax(0)
    for _ in range(crf.iterations):
        flat = q.flatten(1)  # [C, N]
        far = (weights @ flat.index_select(1, senders).T.contiguous()).index_select(0, row_of_pixel).T  # [C, N]
        energy = torch.addcmul(log_p.flatten(1), flat, self_weights).add_(far)  # [C, N]
        near = smooth(q * smooth_scale, kernel).mul_(smooth_scale)  # [C, H, W]
        q = energy.view_as(q).add_(near, alpha=crf.smooth_weight).softmax(0)
    return q


def gaussian_kernel(deviation: float, radius: int) -> Tensor:
    """[2 radius + 1, 2 radius + 1], 1 at the centre."""
    row = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * deviation**2))
    return torch.outer(row, row)


def smooth(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve each plane of [C, H, W], with zero padding."""
    return F.conv2d(x[None], kernel.expand(len(x), 1, -1, -1), padding=len(kernel) // 2, groups=len(x))[0]


def grid_centres(side: int, stride: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Split `side` pixels into intervals of `stride`; the last may be shorter. Returns their central pixels and lengths."""
    start = torch.arange(0, side, stride, device=device)
    length = (side - start).clamp_max(stride)
    return start + length // 2, length


def bilateral_weights(image: Tensor, crf: Crf) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The bilateral kernel of an image [H, W, 3] between all pixels and the senders, normalised and weighted.

    A sender represents all pixels of its square. A pixel is its own sender, too. Memory: 12 bytes per pair that is not 0. A
    photograph has some 15 pairs per pixel; an image of one colour has all of them, ((2 window + 32) / stride)^2.

    Returns:
        the pixels in the order of the matrix rows [N], the senders as pixels [M], the matrix [N, M] (CSR), and the weight of
        each pixel's own message [N], by pixel
    """
    height, width = image.shape[:2]
    device = image.device
    (ys, heights), (xs, widths) = grid_centres(height, crf.stride, device), grid_centres(width, crf.stride, device)
    areas = torch.outer(heights, widths).flatten().float()  # [M] pixels
    pixels = torch.arange(height * width, device=device).view(height, width)
    sender_pixels = pixels[ys][:, xs].flatten()  # [M]
    sender_indices = torch.arange(len(sender_pixels), device=device).view(len(ys), len(xs))
    receiver_factors, sender_factors = log_factors(image, crf)  # both [N, 7]
    blocks, counts, columns, values = [], [], [], []
    for top in range(0, height, BLOCK):
        rows = (ys >= top - crf.window) & (ys < top + BLOCK + crf.window)
        for left in range(0, width, BLOCK):
            cols = (xs >= left - crf.window) & (xs < left + BLOCK + crf.window)
            block = pixels[top : top + BLOCK, left : left + BLOCK].flatten()  # [n]
            nearby = sender_indices[rows][:, cols].flatten()  # [m]
            log_k = receiver_factors[block] @ sender_factors[sender_pixels[nearby]].T  # [n, m]
            strong = (log_k > math.log(MIN_KERNEL)).flatten().nonzero().flatten()
            blocks.append(block)
            counts.append(torch.bincount(strong // len(nearby), minlength=len(block)))
            columns.append(nearby.index_select(0, strong % len(nearby)))
            values.append(log_k.flatten().index_select(0, strong))
    order, column, count = torch.cat(blocks), torch.cat(columns), torch.cat(counts)
    receiver, sender = order.repeat_interleave(count), sender_pixels.index_select(0, column)  # [pairs], as pixels
    k = torch.cat(values).exp_().mul_(areas.index_select(0, column)).mul_(sender != receiver)
    starts, column = F.pad(count.cumsum(0), (1, 0)).int(), column.int()
    size = (height * width, len(sender_pixels))
    sums = areas.new_ones(height * width)
    sums[order] += (torch.sparse_csr_tensor(starts, column, k, size) @ areas.new_ones(len(sender_pixels), 1)).flatten()
    scale = sums.rsqrt()  # [N]
    k.mul_(scale.index_select(0, receiver)).mul_(scale.index_select(0, sender)).mul_(crf.bilateral_weight)
    return order, sender_pixels, torch.sparse_csr_tensor(starts, column, k, size), crf.bilateral_weight / sums


def log_factors(image: Tensor, crf: Crf) -> tuple[Tensor, Tensor]:
    """A, B [N, 7] with A @ B.T = -|f_i - f_j|^2 / 2, f = (row, column, r, g, b) over their deviations."""
    height, width = image.shape[:2]
    positions = torch.cartesian_prod(torch.arange(height, device=image.device), torch.arange(width, device=image.device))
    centre = positions.new_tensor([height, width]) / 2
    colours = (image.reshape(-1, 3).float() - 127.5) / crf.bilateral_rgb  # around 0, where floats are finest
    features = torch.cat([(positions - centre) / crf.bilateral_xy, colours], 1)  # [N, 5]
    half_norm = -(features**2).sum(1, keepdim=True) / 2
    ones = torch.ones_like(half_norm)
    return torch.cat([features, half_norm, ones], 1), torch.cat([features, ones, half_norm], 1)


def refine_all(
    items: Iterable[tuple[str, np.ndarray, np.ndarray]], crf: Crf, count: int, device: torch.device = CPU
) -> Iterator[tuple[str, np.ndarray]]:
    """`refine` each (name, probabilities, image), in order; count is their number.

    On the CPU, workers refine one image each: threads for conv, processes for dense, which holds Python's lock. A process is
    started for every MIN_IMAGES images, and at most MAX_WAITING images per worker wait in memory. On a GPU there is one worker.
    """
    cores = os.cpu_count() or 1
    workers = min(cores, count // MIN_IMAGES) if crf.method == "dense" else cores if device.type != "cuda" else 1
    if workers < 2:
        for name, probabilities, image in items:
            yield name, refine(probabilities, image, crf, device)
        return
    waiting: deque[tuple[str, Future[np.ndarray]]] = deque()
    one_thread: dict[str, Any] = {"initializer": torch.set_num_threads, "initargs": (1,)}
    with (
        ThreadPoolExecutor(workers, **one_thread)
        if crf.method == "conv"
        else ProcessPoolExecutor(workers, get_context("spawn"), **one_thread)
    ) as pool:
        for name, probabilities, image in items:
            waiting.append((name, pool.submit(refine, probabilities, image, crf)))
            if len(waiting) > MAX_WAITING * workers:
                first, job = waiting.popleft()
                yield first, job.result()
        for name, job in waiting:
            yield name, job.result()
