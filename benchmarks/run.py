"""Speed of each stage against its floor and a plain implementation: `python -m benchmarks.run [seconds]` (default 600).

Weights are random and photographs noise of the papers' sizes; neither changes the speed. The floor of a stage is its
floating-point operations (counted by torch.utils.flop_counter) over the fastest matrix product of this run, or the time of its
decoder alone. Plain: float32, batches of one, explicit softmax, the N x N graph, each object decoded and painted on its own.
All take turns, so that other work on the machine slows them alike. A number is the smallest of the turns that fit the time.

With a GPU a second table follows, measured there.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image as Pillow
from pycocotools import mask as coco_mask
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.mine import forward, measure, plain, two_vits
from unseg.core import image_index, masks, profiles
from unseg.core.instances import Detection
from unseg.data import photos
from unseg.detection import detector, torchvision_fpn
from unseg.detection.settings import Detect, Detector
from unseg.engine import batching
from unseg.engine.precision import autocast, fastest_precision
from unseg.mining import affinity
from unseg.models import facets, vit
from unseg.segmentation import deeplab, pseudo_labels, segmenter

ROUNDS = 5  # maximum
MINE = (640, 848)  # rows, columns: mining, in the papers
CROP = (224, 224)  # crops for CLS tokens
PHOTO = (375, 500)
SHAPE = vit.Shape(16, 384, 12, 6)  # ViT-S/16
SIDE, SIDE_GPU = 2048, 4096  # of the square matrices that measure the peak
Way = Callable[[], object]


class Row(NamedTuple):
    stage: str
    items: int  # photographs or objects per call
    ours: Way
    plain: Way | None
    flops: float  # per call; 0: `floor` is timed instead
    precision: str  # of the matrix product for the floor
    floor: Way | None = None


def peaks(device: torch.device) -> dict[str, Way]:
    left, right = torch.randn(2, *2 * [SIDE_GPU if device.type == "cuda" else SIDE], device=device)
    if fastest_precision(device) == "fp32":
        return {"fp32": lambda: left @ right}
    left16, right16 = left.bfloat16(), right.bfloat16()
    return {"fp32": lambda: left @ right, "bf16": lambda: left16 @ right16}


def count_flops(way: Way) -> float:
    """Floating-point operations. The counter does not know the CPU's fused attention: use networks with explicit softmax."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        way()
    return float(counter.get_total_flops())


def mine(device: torch.device) -> Row:
    """From pixels to regions of patches. The floor leaves out the last block, whose attention is not needed."""
    batch = 2 if device.type == "cpu" else 16
    net, explicit = two_vits(SHAPE, device)
    x, grid = torch.randn(batch, 3, *MINE, device=device), (MINE[0] // SHAPE.patch, MINE[1] // SHAPE.patch)

    def ours() -> None:
        with autocast(device, "auto"):
            query, keys, _ = facets.read(net, x)
        mined = affinity.mine(query.float(), keys.float(), 0.4, center=False)
        for mask, source in zip(mined.masks.cpu().numpy(), mined.source.tolist(), strict=True):
            affinity.connected_region(mask.reshape(grid), source)

    def simple() -> None:
        for one in x:
            query, keys = forward(explicit, one[None])
            plain(query.cpu(), keys.cpu(), grid)

    flops = count_flops(lambda: facets.read(explicit, x))
    return Row("mine 640x848, ViT-S/16", batch, ours, simple, flops, fastest_precision(device))


def embed(device: torch.device) -> Row:
    """CLS tokens of crops with `embed.precision: auto`."""
    batch = 16 if device.type == "cpu" else 256
    net, explicit = two_vits(SHAPE, device)
    x = torch.randn(batch, 3, *CROP, device=device)

    def ours() -> None:
        with autocast(device, "auto"):
            vit.tokens(net, x)[:, 0].float().cpu()

    def simple() -> None:
        for one in x:
            vit.tokens(explicit, one[None])[:, 0].cpu()

    flops = count_flops(lambda: vit.tokens(explicit, x))
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

    return Row("detect, of profiles/folder.yaml", batch, ours, None, count_flops(ours), fastest_precision(device))


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
        count_flops(lambda: net(x)),
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

    return Row("train_segmenter, a step", batch, step, None, count_flops(step), fastest_precision(device))


def aggregate() -> Row:
    """Label maps from ten detections each. Plain: every mask is decoded whole and painted over the map."""
    rng, count = np.random.default_rng(0), 64
    images: list[list[Detection]] = []
    for _ in range(count):
        detections = []
        for score in np.linspace(0.95, 0.05, 10):
            mask = np.zeros(PHOTO, bool)
            y, x = rng.integers(0, 250), rng.integers(0, 350)
            mask[y : y + rng.integers(20, 120), x : x + rng.integers(20, 150)] = True
            encoded = masks.encode(mask)
            detections.append(Detection(1, int(rng.integers(20)), encoded, encoded.bbox, float(score)))
        images.append(detections)
    p = pseudo_labels.Aggregation("detections", 0.5, "keep_higher", "mask", "background")

    def simple() -> None:
        for detections in images:
            canvas = np.zeros(PHOTO, np.uint8)
            for d in sorted(detections, key=lambda d: d.score):
                mask = d.mask.decode()
                if d.score > p.threshold:
                    canvas[mask] = d.category_id + 1

    def floor() -> None:
        for detections in images:
            np.zeros(PHOTO, np.uint8)
            for d in detections:
                if d.score > p.threshold:
                    coco_mask.toBbox(d.mask.rle)

    def ours() -> None:
        for detections in images:
            pseudo_labels.paint(detections, PHOTO, p)

    return Row("aggregate, 10 objects", count, ours, simple, 0, "", floor)


def load(folder: Path) -> Row:
    """From JPEG files to tensors of the mining size. The floor is the decoder alone."""
    count = 16
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    images = []
    for i in range(count):
        Pillow.fromarray(noise).resize(PHOTO[::-1], Pillow.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)
        images.append(image_index.ImageRecord(i + 1, f"{i}.jpg", *PHOTO, "train"))
    size = photos.short_side(PHOTO, MINE[0])
    contents = [(folder / i.file_name).read_bytes() for i in images]

    def ours() -> None:
        for image in images:
            batching.pad_to(batching.to_tensor(photos.resize(photos.read(folder, image), size)), 16)

    def decode() -> None:
        for content in contents:
            Pillow.open(BytesIO(content)).load()

    return Row("load, JPEG to 640x853", count, ours, None, 0, "", decode)


def table(rows: list[Row], device: torch.device, seconds: float) -> None:
    products = peaks(device)
    peak = dict.fromkeys(products, 0.0)
    lines = []
    for row in rows:
        ways = {name: way for name, way in (("ours", row.ours), ("plain", row.plain), ("floor", row.floor)) if way}
        t = {name: min(times) for name, times in measure(ways | products, ROUNDS, seconds / len(rows)).items()}
        side = SIDE_GPU if device.type == "cuda" else SIDE
        peak = {name: max(peak[name], 2 * side**3 / t[name]) for name in peak}
        lines.append((row, t))
    print(f"\n{device}: peak of products", ", ".join(f"{name} {x / 1e9:.0f}" for name, x in peak.items()), "GFLOP/s")
    print(f"{'stage':<31} {'ours, ms':>9} {'plain, ms':>10} {'times':>6} {'floor, ms':>10} {'ours/floor':>10} {'of peak':>8}")
    for row, t in lines:
        floor = row.flops / peak[row.precision] if row.flops else t["floor"]
        faster = f"{t['plain'] / t['ours']:.1f}" if row.plain else "-"
        simple = f"{1e3 * t['plain'] / row.items:.2f}" if row.plain else "-"
        fraction = f"{floor / t['ours']:.0%}" if row.flops else "-"
        print(
            f"{row.stage:<31} {1e3 * t['ours'] / row.items:>9.2f} {simple:>10} {faster:>6} {1e3 * floor / row.items:>10.3f} "
            f"{t['ours'] / floor:>10.1f} {fraction:>8}",
            flush=True,
        )


def networks(device: torch.device) -> list[Row]:
    return [mine(device), embed(device), detect(device), predict(device), train_segmenter(device)]


def main(seconds: float = 600.0) -> None:
    torch.manual_seed(0)
    devices = [torch.device("cpu"), *([torch.device("cuda", 0)] if torch.cuda.is_available() else [])]
    print(f"{torch.get_num_threads()} threads; times per photograph or object, the smallest of up to {ROUNDS} turns")
    with tempfile.TemporaryDirectory() as folder:
        for device in devices:
            rows = networks(device) + ([aggregate(), load(Path(folder))] if device.type == "cpu" else [])
            with torch.inference_mode():
                inference = [row for row in rows if not row.stage.startswith("train")]
                table(inference, device, 0.8 * seconds / len(devices))
            table([row for row in rows if row.stage.startswith("train")], device, 0.2 * seconds / len(devices))


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
