"""The fraction of CrOC's training step that its clustering takes, and images per second.

    python -m benchmarks.croc [rounds]

ViT-S/16 at 224 px, B = 16 images: 6 heads, 392 tokens, 12 seeds, the paper's outputs (65,536 and 8,192), random weights and
pixels. A step is a whole step of `unseg.pretraining.croc_training`: both forward passes, clustering, losses, backward pass,
clipping, AdamW, the teacher. Steps and clusterings take turns, so that other work on the machine slows both. A number is the
median of the rounds, after one to warm up. UNSEG_COMPILE=1 adds a step with compiled blocks. On a GPU it also prints the
fraction of the measured bf16 matmul peak. It takes a minute and a half on 2 CPU cores with 3 rounds.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.mine import compare
from unseg.core import profiles
from unseg.engine import environment
from unseg.models import vit
from unseg.pretraining import croc, croc_training, views

PROFILE = "croc_coco"
BATCH = 16


def operations(shape: vit.Shape, p: croc_training.Croc) -> float:
    """Floating-point operations of a step: both networks' forward passes, the student's backward pass (twice its forward)."""
    tokens, width = 1 + (p.views.size // shape.patch) ** 2, shape.width
    block = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    network = 2 * BATCH * (shape.depth * block + 2 * tokens * 3 * shape.patch**2 * width)
    mlp = width * p.hidden + p.hidden**2 + p.hidden * p.bottleneck
    rows, clusters = 2 * BATCH, 2 * BATCH * shape.heads * p.clustering.centroids_max
    head = 2 * (rows * (mlp + p.bottleneck * p.outputs) + clusters * (mlp + p.bottleneck * p.outputs_centroid))
    return float(4 * (network + head))


def main(rounds: int = 3) -> None:
    device = environment.device()
    torch.manual_seed(0)
    published = profiles.group(PROFILE, "croc", croc_training.Croc, ROOT / "profiles")
    shape = profiles.group(PROFILE, "backbone", vit.Backbone, ROOT / "profiles").shape()
    p = replace(published, batch=BATCH)
    side = p.views.size
    boxes = torch.tensor([20.0, 10.0, 300.0, 280.0]).expand(BATCH, 2, 4)
    pixels = torch.randint(0, 256, (BATCH, 2, 3, side, side), dtype=torch.uint8)
    batch = views.Views(pixels, boxes, torch.rand(BATCH, 2) < 0.5)
    tokens = 1 + (side // shape.patch) ** 2
    features = torch.randn(2, BATCH, shape.heads, tokens, shape.width // shape.heads, device=device)
    where = views.positions(boxes.to(device), batch.flipped.to(device), side // shape.patch)

    def make_step(compiled: bool) -> Callable[[], None]:
        net = croc_training.StudentTeacher(p, shape).to(device).train()
        if compiled:
            croc_training.compile_blocks(net)
        trained = [x for x in net.student.parameters() if x.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            croc_training.accumulate(net, batch, (0.04, 0.04), p.accumulate)
            croc_training.clip_gradients(trained, p.clip)
            optimizer.step()
            net.update_teacher(0.996)

        return step

    def clustering() -> None:
        with torch.no_grad():
            croc.join_locate_split(features, where, p.clustering)

    ways: dict[str, Callable[[], object]] = {"step": make_step(False), "clustering": clustering}
    if os.environ.get("UNSEG_COMPILE") == "1":
        ways["compiled"] = make_step(True)
    t = compare(ways, rounds)
    work = f"{BATCH} images, {shape.heads} heads, {2 * (tokens - 1)} tokens, {p.clustering.tokens} seeds, {p.precision}"
    print(f"{device.type}, {torch.get_num_threads()} threads, {work}; medians of {rounds} rounds")
    print(
        f"step {t['step']:.3f} s, clustering {t['clustering']:.3f} s: {t['clustering'] / t['step']:.1%} of a step (at most 5 %)"
    )
    if "compiled" in t:
        print(f"step with compiled blocks {t['compiled']:.3f} s: {t['step'] / t['compiled']:.2f} times as fast")
    print(f"{BATCH / t['step']:.1f} images per second, without reading and augmenting them")
    if device.type == "cuda":
        a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
        peak = 2 * 8192**3 / compare({"matmul": lambda: a @ a}, 10)["matmul"]
        print(f"{operations(shape, p) / t['step'] / peak:.0%} of the bf16 matmul peak, {peak / 1e12:.0f} TFLOP/s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
