"""Fraction of `unseg predict`'s time in which the network runs, and its peak memory for large photographs.

    python benchmarks/predict.py [--model FILE] [--arch resnet50] [--photos 48]

Predicts a folder of drawn photographs of 500 x 375 pixels with a loaded model, to the last file. The fraction is that of the
wall time in which a thread is inside the network (softmax included); threads take turns there, so no second counts twice. The
other threads slow the network down, so the network's time for the same photographs on its own is printed, too. Then a new
process predicts three photographs of 3264 x 2448 pixels (8 megapixels), one per thread, and its peak memory is printed.
Without --model, the segmenter has the shape in params.yaml, or the paper's with --arch resnet50, and random weights, which
change neither time nor memory. Targets: at least 90 % inside the network on a CPU; at most 3 GiB.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image as Pillow

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from unseg.core import params
from unseg.data import photos
from unseg.engine import batching
from unseg.segmentation import deeplab, segmenter, tiles
from unseg.serving.api import Predictor, load
from unseg.serving.cli.predict import predict

SMALL, LARGE = (375, 500), (2448, 3264)  # rows, columns
PEAK = """
import resource, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from unseg.serving.api import load
from unseg.serving.cli.predict import predict
predict(load({model!r}, input_size="original"), Path({photo!r}), Path({out!r}))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def photograph(path: Path, height: int, width: int, seed: int) -> None:
    """Write smooth blobs with a little noise as a JPEG. It takes as long to decode as a photograph."""
    rng = np.random.default_rng(seed)
    small = Pillow.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    pixels = np.asarray(small.resize((width, height), Pillow.Resampling.BICUBIC)) + rng.normal(0, 6, (height, width, 1))
    Pillow.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=92)


def write_random(path: Path, arch: str | None) -> None:
    p = params.group("segmenter", segmenter.Segmenter, ROOT / "params.yaml")
    shape: dict[str, Any] = {key: getattr(p, key) for key in ("arch", "width", "stride", "rates")}
    shape["labels"] = params.value("cluster.k", int, ROOT / "params.yaml") + 1
    if arch:
        shape |= {"arch": arch, "width": 64, "rates": [12, 24, 36]}
    segmenter.write_segmenter(path, deeplab.DeepLab(**shape), shape, p.size, p.precision)


def time_predict(predictor: Predictor, folder: Path, out: Path) -> tuple[float, float]:
    """Seconds inside the network, and in all, for a folder of photographs."""
    inside = 0.0
    probabilities = segmenter.probabilities

    def timed(*args: Any) -> Any:
        nonlocal inside
        start = time.perf_counter()
        result = probabilities(*args)
        inside += time.perf_counter() - start  # one thread at a time
        return result

    with mock.patch.object(tiles, "probabilities", timed):
        start = time.perf_counter()
        predict(predictor, folder, out)
        return inside, time.perf_counter() - start


def time_network(predictor: Predictor, folder: Path) -> float:
    """Seconds of the network for the same photographs, on its own."""
    seconds = 0.0
    for path in sorted(folder.iterdir()):
        image = photos.open_rgb(path)
        size = tiles.network_size(predictor.net, (image.height, image.width), predictor.input_size)
        x = batching.to_tensor(photos.resize(image, size))[None]
        start = time.perf_counter()
        segmenter.probabilities(predictor.net, x.to(predictor.device)).float().cpu()
        seconds += time.perf_counter() - start
    return seconds


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--arch", choices=["resnet18", "resnet50"])
    parser.add_argument("--photos", type=int, default=48)
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        model = options.model or root / "model.safetensors"
        if not options.model:
            write_random(model, options.arch)
        for folder, count, size in (("small", options.photos, SMALL), ("large", 3, LARGE)):
            (root / folder).mkdir()
            for i in range(count):
                photograph(root / f"{folder}/{i}.jpg", *size, i)
        predictor = load(model, input_size="original")
        predictor.predict(root / "small/0.jpg")  # the first call takes longer
        alone = time_network(predictor, root / "small")
        inside, total = time_predict(predictor, root / "small", root / "out")
        count = options.photos
        print(f"{torch.get_num_threads()} threads of torch, {count} photographs of {SMALL[1]} x {SMALL[0]} pixels")
        print(f"{1e3 * total / count:.0f} ms per photograph, {inside / total:.1%} of it inside the network (at least 90 %)")
        print(f"the network on its own: {1e3 * alone / count:.0f} ms per photograph, {alone / total:.1%} of the whole")
        paths = {"root": str(ROOT), "model": str(model), "photo": str(root / "large"), "out": str(root / "out-large")}
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", PEAK.format(**paths)], capture_output=True, text=True, check=True)
        kib = int(done.stdout.split()[-1]) / (1024 if sys.platform == "darwin" else 1)
        seconds = time.perf_counter() - start
        print(f"3 of {LARGE[1]} x {LARGE[0]}: {seconds:.1f} s, peak memory {kib / 2**20:.2f} GiB (at most 3)")


if __name__ == "__main__":
    main()
