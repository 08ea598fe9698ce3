"""Mining in batches, O(N d), against the plain N x N graph, one image at a time; alone, and with the ViT's forward pass.

    python -m benchmarks.mine [rounds]

The paper's sizes: ViT-S/16 (random weights, which take the same time) at 640 x 848, so N = 2,120 patches, 6 heads of 64
channels. The two take turns, so that other work on the machine slows both. A number is the median of the rounds, after one to
warm up. Plain: float32, explicit softmax attention, all of every block, one image at a time. Ours: `facets.read` (without
the last block's attention and MLP), explicit attention of a few heads at a time (`vit.CpuAttention`), a batch, bf16 if the CPU
has bfloat16 units.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from unseg.engine.precision import autocast, fastest_precision
from unseg.mining import affinity
from unseg.models import facets, vit

ROWS, COLS, PATCH, HEADS, WIDTH, DEPTH = 40, 53, 16, 6, 384, 12
CPU = torch.device("cpu")
PATCHES, KEEP, BATCH, IMAGES = ROWS * COLS, 0.4, 8, 2  # BATCH for mining alone, IMAGES with the forward pass


def plain(query: Tensor, keys: Tensor, grid: tuple[int, int]) -> np.ndarray:
    """Equations 1 and 2 as written: query [H, d] and keys [H, N, d] to the object's region [rows, cols]."""
    attention = torch.einsum("hd,hnd->hn", query, keys).mean(0)  # [N]
    rows = keys.transpose(0, 1).flatten(1)  # [N, D]
    similarity = rows @ rows.T  # [N, N], summed over the heads: H times the mean, same sign
    proposals = attention.argsort(descending=True, stable=True)[: int(KEEP * len(attention))]
    voters = proposals[similarity[proposals[0], proposals] > 0]
    mask = (similarity[voters].sum(0) > 0).view(grid).numpy()
    regions, _ = ndimage.label(mask)
    return np.asarray(regions == regions.flat[int(proposals[0])])


def ours(query: Tensor, keys: Tensor) -> list[np.ndarray]:
    """As `plain`, for a batch: query [B, H, d], keys [B, H, N, d]."""
    mined = affinity.mine(query.float(), keys.float(), KEEP, center=False)
    pairs = zip(mined.masks.view(-1, ROWS, COLS).numpy(), mined.source.tolist(), strict=True)
    return [affinity.connected_region(mask, source) for mask, source in pairs]


def forward(model: VisionTransformer, image: Tensor) -> tuple[Tensor, Tensor]:
    """The last block's CLS query and keys by a hook on the whole network."""
    outputs: list[Tensor] = []
    hook = vit.last(model).attn.qkv.register_forward_hook(lambda m, i, o: outputs.append(o))
    model.forward_features(image)
    hook.remove()
    query, keys, _ = outputs[0][0].unflatten(1, (3, HEADS, -1)).permute(1, 2, 0, 3)  # [H, 1 + N, d]
    return query[:, 0], keys[:, 1:]


def two_vits(shape: vit.Shape, device: torch.device) -> tuple[VisionTransformer, VisionTransformer]:
    """Two ViTs, the second with explicit softmax."""
    net, explicit = (vit.build(shape, 224).eval().to(device) for _ in range(2))
    for block in explicit.blocks:
        block.attn.fused_attn = False  # type: ignore[union-attr]
    return net, explicit


def measure(ways: dict[str, Callable[[], object]], rounds: int, seconds: float = math.inf) -> dict[str, list[float]]:
    """Seconds of each way in each round; they take turns. After a warm-up and one round, `seconds` limits further rounds."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    begin = now()
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = now()
            way()
            if turn:
                times[name].append(now() - start)
        if turn and now() - begin > seconds:
            break
    return times


def compare(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each way."""
    return {name: statistics.median(times) for name, times in measure(ways, rounds).items()}


def now() -> float:
    """Seconds, after all work on the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def operations(blocks: int) -> float:
    """Floating-point operations of the forward pass of an image through so many blocks."""
    tokens = 1 + PATCHES
    weights = 2 * PATCHES * 3 * PATCH**2 * WIDTH + blocks * 2 * tokens * 12 * WIDTH**2
    return float(weights + blocks * 4 * tokens**2 * WIDTH)


@torch.inference_mode()
def main(rounds: int = 3) -> None:
    print(f"{torch.get_num_threads()} threads, N = {PATCHES}, {HEADS} heads of {WIDTH // HEADS}, medians of {rounds} rounds")
    torch.manual_seed(0)
    grid = (ROWS, COLS)
    query, keys = torch.randn(BATCH, HEADS, 64), torch.randn(BATCH, HEADS, PATCHES, 64)
    keys += 0.5 * torch.randn(BATCH, HEADS, 1, 64)
    agree = np.mean([np.array_equal(plain(q, k, grid), o) for q, k, o in zip(query, keys, ours(query, keys), strict=True)])
    t = compare(
        {"plain": lambda: [plain(q, k, grid) for q, k in zip(query, keys, strict=True)], "ours": lambda: ours(query, keys)},
        rounds,
    )
    print(f"mining: plain {1e3 * t['plain'] / BATCH:.1f} ms, ours {1e3 * t['ours'] / BATCH:.2f} ms per image (batch {BATCH}),")
    print(f"  {t['plain'] / t['ours']:.0f} times as fast; same regions: {agree:.0%}")

    net, explicit = two_vits(vit.Shape(PATCH, WIDTH, DEPTH, HEADS), CPU)
    images = torch.randn(IMAGES, 3, ROWS * PATCH, COLS * PATCH)

    def batched() -> list[np.ndarray]:
        with autocast(CPU, "auto"):
            return ours(*facets.read(net, images)[:2])

    fast = fastest_precision(CPU)
    left, right = torch.randn(2, 2048, 2048, dtype=torch.bfloat16 if fast == "bf16" else torch.float32)
    t = compare(
        {
            "plain": lambda: [plain(*forward(explicit, image[None]), grid) for image in images],
            "ours": batched,
            "peak": lambda: left @ right,
        },
        rounds,
    )
    peak = 2 * 2048**3 / t["peak"]
    whole, needed = operations(DEPTH), operations(DEPTH - 1)
    floor = needed / peak
    print(f"with forward pass: plain {t['plain'] / IMAGES:.2f} s, ours {t['ours'] / IMAGES:.2f} s per image (batch {IMAGES}),")
    print(f"  {t['plain'] / t['ours']:.1f} times as fast")
    print(f"forward pass: {whole / 1e9:.0f} GFLOP, {needed / 1e9:.0f} GFLOP without the last block")
    print(f"matmul peak of this run: {fast} {peak / 1e9:.0f} GFLOP/s")
    print(f"floor at that peak: {floor:.2f} s per image; ours takes {t['ours'] / IMAGES / floor:.1f} times the floor")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
