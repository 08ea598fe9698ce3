"""A fully connected CRF on a segmenter's probabilities (arXiv:1210.5644), by mean field, in one of two ways.

`dense` is pydensecrf: Gaussian filtering on a permutohedral lattice, as the paper has it (arXiv:2206.06363, section B).
`conv` is a ConvCRF (arXiv:1805.04777) in tensors, for CPU and GPU: the smooth kernel is a truncated convolution; the bilateral
kernel, which reaches far, takes its messages from a grid of every `stride`-th pixel within a window. (The ConvCRF paper
averages the image down instead; with a kernel as narrow in colour as the published one, averaged colours meet nobody.)
The energies are the same, kernels are normalised symmetrically in both, and labels agree in all but a few pixels.

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
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unseg.core import optional

ALONE, AHEAD = 100, 8  # images a process of the CRF has at the least; images a process that wait, at the most
FLOOR = 1e-5  # probabilities below are taken as this, so that no energy is infinite
WEAKEST = 0.05  # bilateral kernel below this is taken as 0: most pairs of pixels are, and cost nothing then
BLOCK = 32  # pixels; side of the squares that look for their senders together
CPU = torch.device("cpu")

with warnings.catch_warnings():  # torch says once in a process that CSR tensors are in beta
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.empty(0, dtype=torch.int64), torch.empty(0), (1, 1))


@dataclass(frozen=True)
class Crf:
    """The `crf` group of params.yaml; the published code has dense, 10, 1, 3, 67, 3, 4 (docs/spec/maskdistill.md, B.5.4)."""

    method: str  # dense (paper): pydensecrf; conv: tensors
    iterations: int  # of mean field
    smooth_xy: float  # pixels; deviation of the kernel that prefers one label nearby
    smooth_weight: float
    bilateral_xy: float  # pixels; deviation of the kernel that prefers one label nearby in like colours
    bilateral_rgb: float  # of 255
    bilateral_weight: float
    window: int  # pixels, conv alone: bilateral messages come from at least this far up, down, left and right
    stride: int  # pixels, conv alone: bilateral messages come from every so many pixels, each for its stride x stride square

    def __post_init__(self) -> None:
        if self.method not in optional.CRF_METHODS:
            raise ValueError(f"crf.method is {self.method!r}; it must be one of {', '.join(optional.CRF_METHODS)}")
        for key in ("iterations", "window", "stride"):
            if getattr(self, key) < 1:
                raise ValueError(f"crf.{key} is {getattr(self, key)}; it must be at least 1")
        for key in ("smooth_xy", "bilateral_xy", "bilateral_rgb"):
            if getattr(self, key) <= 0:
                raise ValueError(f"crf.{key} is {getattr(self, key)}; it must be above 0")
        for key in ("smooth_weight", "bilateral_weight"):
            if getattr(self, key) < 0:
                raise ValueError(f"crf.{key} is {getattr(self, key)}; it must not be below 0")


def refine(probabilities: np.ndarray, image: np.ndarray, crf: Crf, device: torch.device = CPU) -> np.ndarray:
    """Labels after mean-field inference.

    Labels whose probability is at the floor in every pixel are left out: their energy is the same everywhere, they
    win nowhere, and time is proportional to the number of labels.

    Args:
        probabilities: [C, H, W] float32, C up to 256.
        image: [H, W, 3] uint8 RGB. The kernel does not know one channel from another; dense's lattice does, by some
            0.5 % of the pixels.
        device: where conv computes; on what has no sparse tensors (mps) it is the CPU. dense has the CPU alone.

    Returns:
        [H, W] uint8

    Raises:
        InputError: method dense, and pydensecrf is not installed.
    """
    count = len(probabilities)
    if count > 256:
        raise ValueError(f"{count} labels; a label map holds 256")
    present = np.flatnonzero(probabilities.reshape(count, -1).max(1) > FLOOR)
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
    field.setUnaryEnergy(unary_from_softmax(p, clip=FLOOR))  # [C, N]
    field.addPairwiseGaussian(sxy=crf.smooth_xy, compat=crf.smooth_weight)
    colours = np.array(image[..., ::-1], np.uint8, order="C")  # BGR, as published; a copy that pydensecrf may write to
    field.addPairwiseBilateral(sxy=crf.bilateral_xy, srgb=crf.bilateral_rgb, rgbim=colours, compat=crf.bilateral_weight)
    return np.asarray(np.array(field.inference(crf.iterations)).argmax(0).reshape(height, width))


@torch.no_grad()
def conv(p: Tensor, image: Tensor, crf: Crf) -> Tensor:
    """Probabilities [C, H, W] after mean field: Q = softmax(log p + sum over both kernels of weight D K D Q), D = (K 1)^-1/2.

    Args:
        p: [C, H, W] float32, on any device; below FLOOR is taken as FLOOR.
        image: [H, W, 3] uint8 RGB, on the same device.
    """
    height, width = p.shape[1:]
    log_p = p.clamp_min(FLOOR).log()
    kernel = gaussian(crf.smooth_xy, min(max(height, width), math.ceil(3 * crf.smooth_xy))).to(p.device)  # [k, k]
    smooth_scale = smoothed(torch.ones_like(p[:1]), kernel).rsqrt()  # [1, H, W]
    order, senders, pull, self_pull = bilateral(image, crf)  # [N], [M], [N, M], [N]
    where = order.argsort()  # [N]: the row of `pull` that is a pixel's
    q = log_p.softmax(0)
    for _ in range(crf.iterations):
        flat = q.flatten(1)  # [C, N]
        far = (pull @ flat.index_select(1, senders).T.contiguous()).index_select(0, where).T  # [C, N]
        energy = torch.addcmul(log_p.flatten(1), flat, self_pull).add_(far)  # [C, N]
        near = smoothed(q * smooth_scale, kernel).mul_(smooth_scale)  # [C, H, W]
        q = energy.view_as(q).add_(near, alpha=crf.smooth_weight).softmax(0)
    return q


def gaussian(deviation: float, radius: int) -> Tensor:
    """[2 radius + 1, 2 radius + 1], 1 in the middle."""
    row = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * deviation**2))
    return torch.outer(row, row)


def smoothed(x: Tensor, kernel: Tensor) -> Tensor:
    """Each of the planes [C, H, W] convolved; 0 outside."""
    return F.conv2d(x[None], kernel.expand(len(x), 1, -1, -1), padding=len(kernel) // 2, groups=len(x))[0]


def every(side: int, stride: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The middle pixels of `side` pixels cut into stretches of `stride`, and the stretches' lengths; the last may be shorter."""
    start = torch.arange(0, side, stride, device=device)
    length = (side - start).clamp_max(stride)
    return start + length // 2, length


def bilateral(image: Tensor, crf: Crf) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The bilateral kernel of an image [H, W, 3] between all pixels and the senders, normalised and weighted.

    A sender stands for the pixels of its square; to itself a pixel sends its own message. Memory: 12 bytes for each pair that
    is not 0. A photograph has some 15 a pixel; one of a single colour has all, ((2 window + 32) / stride)^2.

    Returns:
        the pixels in the order of the matrix's rows [N], the senders among the pixels [M], the matrix [N, M] (CSR),
        and each pixel's pull on itself [N], by pixel
    """
    height, width = image.shape[:2]
    device = image.device
    (ys, lengths), (xs, widths) = every(height, crf.stride, device), every(width, crf.stride, device)
    stood_for = torch.outer(lengths, widths).flatten().float()  # [M] pixels
    pixels = torch.arange(height * width, device=device).view(height, width)
    senders = pixels[ys][:, xs]  # [h, w]
    numbers = torch.arange(len(ys) * len(xs), device=device).view_as(senders)
    to, sent = log_factors(image, crf)  # both [N, 7]
    order, counts, columns, values = [], [], [], []
    for top in range(0, height, BLOCK):
        rows = (ys >= top - crf.window) & (ys < top + BLOCK + crf.window)
        for left in range(0, width, BLOCK):
            cols = (xs >= left - crf.window) & (xs < left + BLOCK + crf.window)
            here = pixels[top : top + BLOCK, left : left + BLOCK].flatten()  # [n]
            there = numbers[rows][:, cols].flatten()  # [m]
            log_k = to[here] @ sent[senders.flatten()[there]].T  # [n, m]
            strong = (log_k > math.log(WEAKEST)).flatten().nonzero().flatten()
            order.append(here)
            counts.append(torch.bincount(strong // len(there), minlength=len(here)))
            columns.append(there.index_select(0, strong % len(there)))
            values.append(log_k.flatten().index_select(0, strong))
    row_of, column, count, flat = torch.cat(order), torch.cat(columns), torch.cat(counts), senders.flatten()
    sender, pixel = flat.index_select(0, column), row_of.repeat_interleave(count)  # [pairs]
    k = torch.cat(values).exp_().mul_(stood_for.index_select(0, column)).mul_(sender != pixel)
    starts, column = F.pad(count.cumsum(0), (1, 0)).int(), column.int()
    size = (height * width, len(flat))
    sums = torch.empty_like(stood_for[:1]).new_ones(height * width)
    sums[row_of] += (torch.sparse_csr_tensor(starts, column, k, size) @ stood_for.new_ones(len(flat), 1)).flatten()
    scale = sums.rsqrt()  # [N]
    k.mul_(scale.index_select(0, pixel)).mul_(scale.index_select(0, sender)).mul_(crf.bilateral_weight)
    return row_of, flat, torch.sparse_csr_tensor(starts, column, k, size), crf.bilateral_weight / sums


def log_factors(image: Tensor, crf: Crf) -> tuple[Tensor, Tensor]:
    """Two [N, 7] whose products are the logarithms of the bilateral kernel: a b - a a / 2 - b b / 2, with a, b of [x y r g b]."""
    height, width = image.shape[:2]
    at = torch.cartesian_prod(torch.arange(height, device=image.device), torch.arange(width, device=image.device))
    middle = at.new_tensor([height, width]) / 2
    colours = (image.reshape(-1, 3).float() - 127.5) / crf.bilateral_rgb  # about 0, where floats are finest
    features = torch.cat([(at - middle) / crf.bilateral_xy, colours], 1)  # [N, 5]
    half = -(features**2).sum(1, keepdim=True) / 2
    ones = torch.ones_like(half)
    return torch.cat([features, half, ones], 1), torch.cat([features, ones, half], 1)


def refine_each(
    items: Iterable[tuple[str, np.ndarray, np.ndarray]], crf: Crf, count: int, device: torch.device = CPU
) -> Iterator[tuple[str, np.ndarray]]:
    """`refine` of (name, probabilities, image), in order; `count` of them, so that few need no processes.

    On the CPU all cores share the images, a core an image: threads for conv, processes for dense, which holds Python's lock.
    A process has ALONE to do at the least; no more than AHEAD a worker wait in memory. A GPU takes one after the other.
    """
    cores = os.cpu_count() or 1
    workers = min(cores, count // ALONE) if crf.method == "dense" else cores if device.type != "cuda" else 1
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
            if len(waiting) > AHEAD * workers:
                first, job = waiting.popleft()
                yield first, job.result()
        for name, job in waiting:
            yield name, job.result()
