"""Every stage's speed against its floor, in one table: `python -m benchmarks.run [seconds]` (at the most; 600 by default).

Speed does not depend on weights or on what a photograph shows: weights are random, photographs noise of the papers' sizes. The
floor of a stage is what it must do at the least, at the peak measured in this very run: floating-point operations (counted by
torch.utils.flop_counter on the stage's own network) over the fastest matrix product, bytes over the fastest copy of memory or
the fastest decoder. `plain` is the same work done the simple way: float32, batches of one, softmax written out, the N x N
matrix, each object decoded and painted on its own. Ways take turns, so that whatever else the machine does slows them alike;
a figure is the smallest of the rounds that the time allows.

With a GPU the same table, measured there, follows the CPU's.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image as Pillow
from pycocotools import mask as coco_mask
from timm.models.vision_transformer import VisionTransformer
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.mine import forward, plain
from unseg.core import image_index, profiles, rle
from unseg.data import photos
from unseg.detection import detector, torchvision_fpn
from unseg.detection.settings import Detect, Detector
from unseg.engine import batching
from unseg.engine.precision import autocast, fastest_precision
from unseg.mining import affinity
from unseg.models import vit
from unseg.segmentation import deeplab, pseudo_labels, segmenter

ROUNDS = 5  # at the most, of each way
MINE = (640, 848)  # pixels, the papers' sizes: mining
CROP = (224, 224)  # of a crop whose CLS token is taken
PHOTO = (375, 500)
SHAPE = vit.Backbone("none", 16, 384, 12, 6)  # ViT-S/16
SIDE, SIDE_GPU = 2048, 4096  # of the square matrices whose product is the peak
Way = Callable[[], object]


class Row(NamedTuple):
    stage: str
    items: int  # photographs or objects that a call does
    ours: Way
    plain: Way | None  # the simple way, of the same items
    flops: float  # of a call, at the least; in the product's type `precision`
    precision: str
    floor: Way | None = None  # or: what cannot be done without (a decoder, a copy), to be timed


def fastest(ways: dict[str, Way], seconds: float) -> dict[str, float]:
    """The smallest time of each way, in turns, until the seconds are over (two turns at the least)."""
    best, begin = dict.fromkeys(ways, float("inf")), time.perf_counter()
    for turn in range(ROUNDS + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:  # the first warms up
                best[name] = min(best[name], time.perf_counter() - start)
        if turn and time.perf_counter() - begin > seconds:
            break
    return best


def peaks(device: torch.device) -> dict[str, Way]:
    left, right = torch.randn(2, *2 * [SIDE_GPU if device.type == "cuda" else SIDE], device=device)
    if fastest_precision(device) == "fp32":
        return {"fp32": lambda: left @ right}
    left16, right16 = left.bfloat16(), right.bfloat16()
    return {"fp32": lambda: left @ right, "bf16": lambda: left16 @ right16}


def counted(way: Way) -> float:
    """Of a network with its softmax written out: the counter does not know the fused kernel of CPUs."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        way()
    return float(counter.get_total_flops())


def networks_of_two_ways(device: torch.device) -> tuple[VisionTransformer, VisionTransformer]:
    """Two ViT-S/16, the second with its softmax written out."""
    net, explicit = (vit.build(SHAPE, 224).eval().to(device) for _ in range(2))
    for block in explicit.blocks:
        block.attn.fused_attn = False  # type: ignore[union-attr]
    return net, explicit


def mine(device: torch.device) -> Row:
    """A batch from pixels to regions of patches; the floor leaves out the last block, whose attention is not needed."""
    batch = 2 if device.type == "cpu" else 16
    net, explicit = networks_of_two_ways(device)
    x, grid = torch.randn(batch, 3, *MINE, device=device), (MINE[0] // SHAPE.patch, MINE[1] // SHAPE.patch)

    def ours() -> None:
        with autocast(device, "auto"):
            query, keys = vit.last_block(net, x)
        mined = affinity.mine(query.float(), keys.float(), 0.4, center=False)
        for mask, source in zip(mined.masks.cpu().numpy(), mined.source.tolist(), strict=True):
            affinity.connected_region(mask.reshape(grid), source)

    def simple() -> None:
        for one in x:
            query, keys = forward(explicit, one[None])
            plain(query.cpu(), keys.cpu(), grid)

    flops = counted(lambda: vit.last_block(explicit, x))
    return Row("mine 640x848, ViT-S/16", batch, ours, simple, flops, fastest_precision(device))


def embed(device: torch.device) -> Row:
    """CLS tokens of crops in batches, `embed.precision: auto`; plain: one by one, float32, softmax written out."""
    batch = 16 if device.type == "cpu" else 256
    net, explicit = networks_of_two_ways(device)
    x = torch.randn(batch, 3, *CROP, device=device)

    def ours() -> None:
        with autocast(device, "auto"):
            vit.tokens(net, x)[:, 0].float().cpu()

    def simple() -> None:
        for one in x:
            vit.tokens(explicit, one[None])[:, 0].cpu()

    flops = counted(lambda: vit.tokens(explicit, x))
    return Row("embed 224x224, ViT-S/16", batch, ours, simple, flops, fastest_precision(device))


def detect(device: torch.device) -> Row:
    batch = 2 if device.type == "cpu" else 16
    p = replace(profiles.group("folder", "detector", Detector, ROOT / "profiles"), precision="auto")
    q = profiles.group("folder", "detect", Detect, ROOT / "profiles")
    net = torchvision_fpn.build(p, 20).to(device)
    trained = detector.prepared(net, p, q, 20)
    x = torch.randint(0, 256, (batch, 3, *PHOTO), dtype=torch.uint8, device=device)

    def ours() -> object:
        return detector.detect_batch(trained, x, range(batch))

    return Row("detect, of profiles/folder.yaml", batch, ours, None, counted(ours), fastest_precision(device))


def predict(device: torch.device) -> Row:
    batch = 2 if device.type == "cpu" else 16
    net = deeplab.DeepLab("resnet18", 64, 8, [12, 24, 36], 21).to(device).to(memory_format=torch.channels_last).eval()
    x = torch.randn(batch, 3, *PHOTO, device=device)
    trained = segmenter.TrainedSegmenter(net, 21, 512, "auto")
    return Row(
        "predict, DeepLab R18",
        batch,
        lambda: segmenter.probabilities(trained, x).argmax(1).to(torch.uint8).cpu(),
        lambda: [net(one[None]).softmax(1).argmax(1).to(torch.uint8).cpu() for one in x],
        counted(lambda: net(x)),
        fastest_precision(device),
    )


def train_segmenter(device: torch.device) -> Row:
    batch = 4 if device.type == "cpu" else 32
    net = deeplab.DeepLab("resnet18", 64, 8, [12, 24, 36], 21).to(device).to(memory_format=torch.channels_last).train()
    x = torch.randn(batch, 3, 256, 256, device=device).to(memory_format=torch.channels_last)
    y = torch.randint(0, 21, (batch, 256, 256), device=device)

    def step() -> None:
        with torch.enable_grad():
            with autocast(device, "auto"):
                logits = net(x)
            segmenter.hard_pixel_loss(logits, y, 0.2).backward()

    return Row("train_segmenter, a step", batch, step, None, counted(step), fastest_precision(device))


def aggregate() -> Row:
    """Label maps from ten detections each; plain: every mask decoded whole and painted over the map."""
    rng, count = np.random.default_rng(0), 64
    found = []
    for _ in range(count):
        own = []
        for score in np.linspace(0.95, 0.05, 10):
            mask = np.zeros(PHOTO, bool)
            y, x = rng.integers(0, 250), rng.integers(0, 350)
            mask[y : y + rng.integers(20, 120), x : x + rng.integers(20, 150)] = True
            encoded = rle.encode(mask)
            box = coco_mask.toBbox(encoded).tolist()
            own.append({"category_id": int(rng.integers(20)), "segmentation": encoded, "bbox": box, "score": float(score)})
        found.append(own)
    p = pseudo_labels.Aggregation(0.5, "keep_higher", "mask", "background")

    def simple() -> None:
        for own in found:
            canvas = np.zeros(PHOTO, np.uint8)
            for d in sorted(own, key=lambda d: d["score"]):
                mask = rle.decode(d["segmentation"])
                if d["score"] > p.threshold:
                    canvas[mask] = d["category_id"] + 1

    def floor() -> None:
        for own in found:
            np.zeros(PHOTO, np.uint8)
            for d in own:
                if d["score"] > p.threshold:
                    coco_mask.toBbox(d["segmentation"])

    def ours() -> None:
        for own in found:
            pseudo_labels.paint(own, PHOTO, p)

    return Row("aggregate, 10 objects", count, ours, simple, 0, "", floor)


def load(folder: Path) -> Row:
    """Photographs to tensors of the mining size; the floor is the decoder alone."""
    count = 16
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    every = []
    for i in range(count):
        Pillow.fromarray(noise).resize(PHOTO[::-1], Pillow.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)
        every.append(image_index.ImageRecord(i + 1, f"{i}.jpg", *PHOTO, "train"))
    size = photos.short_side(PHOTO, MINE[0])
    contents = [(folder / i.file_name).read_bytes() for i in every]

    def ours() -> None:
        for image in every:
            batching.pad_to(batching.to_tensor(photos.resize(photos.read(folder, image), size)), 16)

    def decode() -> None:
        for content in contents:
            Pillow.open(BytesIO(content)).load()

    return Row("load, JPEG to 640x853", count, ours, None, 0, "", decode)


def table(rows: list[Row], device: torch.device, seconds: float) -> None:
    peak = dict.fromkeys(peaks(device), 0.0)
    lines = []
    for row in rows:
        ways = {"ours": row.ours} | ({"plain": row.plain} if row.plain else {}) | ({"floor": row.floor} if row.floor else {})
        t = fastest(ways | peaks(device), seconds / len(rows))
        side = SIDE_GPU if device.type == "cuda" else SIDE
        peak = {name: max(peak[name], 2 * side**3 / t[name]) for name in peak}
        lines.append((row, t))
    print(f"\n{device}: peak of products", ", ".join(f"{name} {x / 1e9:.0f}" for name, x in peak.items()), "GFLOP/s")
    print(f"{'stage':<31} {'ours, ms':>9} {'plain, ms':>10} {'times':>6} {'floor, ms':>10} {'ours/floor':>10} {'of peak':>8}")
    for row, t in lines:
        floor = row.flops / peak[row.precision] if row.flops else t["floor"]
        faster = f"{t['plain'] / t['ours']:.1f}" if row.plain else "-"
        simple = f"{1e3 * t['plain'] / row.items:.2f}" if row.plain else "-"
        share = f"{floor / t['ours']:.0%}" if row.flops else "-"
        print(
            f"{row.stage:<31} {1e3 * t['ours'] / row.items:>9.2f} {simple:>10} {faster:>6} {1e3 * floor / row.items:>10.3f} "
            f"{t['ours'] / floor:>10.1f} {share:>8}",
            flush=True,
        )


def networks(device: torch.device) -> list[Row]:
    return [mine(device), embed(device), detect(device), predict(device), train_segmenter(device)]


def main(seconds: float = 600.0) -> None:
    torch.manual_seed(0)
    devices = [torch.device("cpu"), *([torch.device("cuda", 0)] if torch.cuda.is_available() else [])]
    print(f"{torch.get_num_threads()} threads; times are of a photograph or an object, the smallest of up to {ROUNDS} turns")
    with tempfile.TemporaryDirectory() as folder:
        for device in devices:
            rows = networks(device) + ([aggregate(), load(Path(folder))] if device.type == "cpu" else [])
            with torch.inference_mode():
                still = [row for row in rows if not row.stage.startswith("train")]
                table(still, device, 0.8 * seconds / len(devices))
            table([row for row in rows if row.stage.startswith("train")], device, 0.2 * seconds / len(devices))


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
