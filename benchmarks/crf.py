"""The CRF's two methods: milliseconds per picture, and the fraction of pixels whose labels agree.

    python benchmarks/crf.py [--scenes 50] [--photos 50] [--voc ../shared/data/VOC2012] [--run FOLDER]

Pictures are drawn scenes of 64 and 96 pixels a side, and photographs of VOC 2012 that have masks. The probabilities are
degraded true masks: averaged over cells as large as a network's stride, with displaced outlines and noise, sharpened until the
largest probability of a pixel is 0.7 on average, enlarged bilinearly. Scenes have 7 labels, photographs 5 to 21. The kernels
are the published ones. `unrefined`: agreement of dense with the labels before refinement.

--run FOLDER also compares them on the probabilities of the final segmenter of a finished demo.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from PIL import Image as Pillow

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from unseg.core import image_index, optional, params
from unseg.core.console import InputError
from unseg.data import demo, photos
from unseg.segmentation import segmenter
from unseg.segmentation.crf import Crf, refine

CONV = Crf("conv", 10, 1.0, 3.0, 67.0, 3.0, 4.0, window=64, stride=8)
CONFIDENCE = 0.7
Item = tuple[np.ndarray, np.ndarray]  # probabilities [C, H, W] float32, image [H, W, 3] uint8


def degrade(truth: np.ndarray, labels: int, cell: int, displaced: float, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Probabilities [C, H, W] float32 from a true label map [H, W]; `displaced` in pixels; 255 counts as background."""
    height, width = truth.shape
    h, w = -(-height // cell), -(-width // cell)
    small = max(2, h // 4), max(2, w // 4)
    dy, dx = (cv2.resize(rng.normal(0, displaced, small), (w, h), interpolation=cv2.INTER_CUBIC) for _ in range(2))
    y, x = np.mgrid[:h, :w] * cell + cell / 2
    rows, cols = (np.clip(a, 0, n - 1).astype(int) for a, n in ((y + dy, height), (x + dx, width)))
    masks = np.eye(labels, dtype=np.float32)[np.where(truth == 255, 0, truth)].transpose(2, 0, 1)
    averages = np.stack([cv2.blur(np.ascontiguousarray(m), (cell, cell)) for m in masks])[:, rows, cols]
    clouds = np.stack([cv2.GaussianBlur(rng.normal(0, 3, (h, w)), (0, 0), 1.5) for _ in range(labels)])
    logits = torch.from_numpy(averages + noise * clouds)
    low, high = 0.1, 60.0
    for _ in range(40):
        middle = (low * high) ** 0.5
        above = float((logits * middle).softmax(0).amax(0).mean()) > CONFIDENCE
        low, high = (low, middle) if above else (middle, high)
    p = (logits * middle).softmax(0).float()
    return torch.nn.functional.interpolate(p[None], (height, width), mode="bilinear")[0].numpy()


def scenes(count: int, size: int) -> Iterator[Item]:
    for seed in range(count):
        rng = np.random.default_rng(1000 + seed)
        image, objects = demo.scene(rng, size)
        truth = np.zeros((size, size), int)
        for label, mask in objects:
            truth[mask] = label
        yield degrade(truth, 1 + len(demo.CLASSES), 4, 6, 0.25, rng), image


def photographs(count: int, voc: Path) -> Iterator[Item]:
    """Evenly spaced ones. Their classes get random labels among 5 to 21."""
    files = sorted((voc / "SegmentationClass").glob("*.png"))
    for seed, file in enumerate(files[:: max(1, len(files) // count)][:count]):
        rng = np.random.default_rng(seed)
        mask = np.array(Pillow.open(file))
        image = np.array(Pillow.open(voc / "JPEGImages" / f"{file.stem}.jpg").convert("RGB"))
        classes = [c for c in np.unique(mask) if 0 < c < 255]
        labels = max(int(rng.integers(5, 22)), 1 + len(classes))
        table = np.zeros(256, int)
        table[classes], table[255] = 1 + rng.permutation(labels - 1)[: len(classes)], 255
        yield degrade(table[mask], labels, 8, 16, 0.4, rng), image


def finished(root: Path) -> Iterator[Item]:
    """The evaluation images of a finished run, with the probabilities of its final segmenter."""
    file = root / "params.yaml"
    content = yaml.safe_load(file.read_text())
    net = segmenter.load(root / f"models/segmenter-{content['final']}.safetensors")
    folder, eval_images = str(root / content["data"]["images"]), image_index.eval_images(root / "data/images.json")
    q = params.group("predict", segmenter.Predict, file)
    for image, p in segmenter.predict(net, segmenter.load_batches(net, folder, eval_images, q)):
        yield p.float().cpu().numpy(), np.asarray(photos.read(folder, image))


def timed(p: np.ndarray, image: np.ndarray, crf: Crf) -> tuple[np.ndarray, float]:
    """Labels, and milliseconds."""
    start = time.perf_counter()
    return refine(p, image, crf), 1000 * (time.perf_counter() - start)


def compare(name: str, items: Iterator[Item], conv: Crf) -> None:
    """Print a line of the table. The two take turns, so that other work on the machine slows both alike."""
    rows = []
    for p, image in items:
        a, dense_ms = timed(p, image, replace(conv, method="dense"))
        b, conv_ms = timed(p, image, conv)
        rows.append((dense_ms, conv_ms, 100 * (a == b).mean(), 100 * (a == p.argmax(0)).mean()))
    dense, convolved, same, unrefined = np.array(rows).T
    print(
        f"{name:22} {len(rows):5} {conv.stride:6} {dense.mean():9.0f} {convolved.mean():9.0f}"
        f" {same.mean():8.2f} {same.min():8.2f} {unrefined.mean():9.2f}"
    )


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=50)
    parser.add_argument("--photos", type=int, default=50)
    parser.add_argument("--voc", type=Path, default=ROOT.parent / "shared/data/VOC2012")
    parser.add_argument("--run", type=Path, metavar="FOLDER")
    options = parser.parse_args(words)
    try:
        optional.check_crf_method("dense")
    except InputError as error:
        print(f"nothing to compare: {error}")
        return
    torch.set_num_threads(1)  # as in refine_all's workers
    print(f"{'':22} {'count':>5} {'stride':>6} {'dense ms':>9} {'conv ms':>9} {'same %':>8} {'least %':>8} {'unrefined':>9}")
    for size in (64, 96):
        compare(f"scenes {size} x {size}", scenes(options.scenes, size), replace(CONV, stride=4))
    if options.run:
        compare(f"finished run {options.run.name}", finished(options.run), replace(CONV, stride=4))
    if options.photos and (options.voc / "SegmentationClass").is_dir():
        compare("photographs of VOC", photographs(options.photos, options.voc), CONV)
    else:
        print(f"photographs of VOC: skipped, no folder {options.voc}")


if __name__ == "__main__":
    main()
