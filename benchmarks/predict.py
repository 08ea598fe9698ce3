"""What `unseg predict` costs beside its network: the share of time in which the network runs, and the memory of large photos.

    python benchmarks/predict.py [--model FILE] [--arch resnet50] [--photos 48]

Predicts a folder of drawn photographs of 500 x 375 pixels as `unseg predict` does (reading, blending, overlays, JSON), from the
call to the last file, the model loaded. The share is that of the wall time in which some thread is inside the network (softmax
included); threads take turns there, so no second counts twice. As what runs beside the network takes cores from it and makes
its seconds longer, the network's time for the same photographs with nothing beside it is printed too: it is what the whole
would take at the least. Then photographs of 3264 x 2448 pixels (8 megapixels), three, so that all threads have one, in a process
of its own, whose peak memory is printed. Without --model, a segmenter of the shape of params.yaml, or with --arch resnet50 of the
paper's, with weights as they are drawn: time and memory do not depend on what it has learned. Targets: at least 90 % inside the
network on a CPU; at most 3 GiB.
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
    """Smooth blobs with a little noise, as a JPEG: it costs what a photograph costs to decode."""
    rng = np.random.default_rng(seed)
    small = Pillow.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    pixels = np.asarray(small.resize((width, height), Pillow.Resampling.BICUBIC)) + rng.normal(0, 6, (height, width, 1))
    Pillow.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=92)


def fresh(path: Path, arch: str | None) -> None:
    p = params.group("segmenter", segmenter.Segmenter, ROOT / "params.yaml")
    shape: dict[str, Any] = {
        "arch": p.arch,
        "width": p.width,
        "stride": p.stride,
        "rates": p.rates,
        "labels": params.value("cluster.k", int, ROOT / "params.yaml") + 1,
    }
    if arch:
        shape |= {"arch": arch, "width": 64, "rates": [12, 24, 36]}
    segmenter.write_segmenter(path, deeplab.DeepLab(**shape), shape, p.size, p.precision)


def inside(predictor: Predictor, folder: Path, out: Path) -> tuple[float, float]:
    """Seconds in which the network runs, and in all, for a folder of photographs."""
    spent = 0.0
    plain = segmenter.probabilities

    def timed(*given: Any) -> Any:
        nonlocal spent
        begun = time.perf_counter()
        answer = plain(*given)
        spent += time.perf_counter() - begun  # only the thread whose turn it is comes here
        return answer

    with mock.patch.object(tiles, "probabilities", timed):
        start = time.perf_counter()
        predict(predictor, folder, out)
        total = time.perf_counter() - start
    return spent, total


def alone(predictor: Predictor, folder: Path) -> float:
    """Seconds of the network for the same photographs, nothing beside it."""
    spent = 0.0
    for path in sorted(folder.iterdir()):
        image = photos.open_rgb(path)
        size = tiles.network_size(predictor.net, (image.height, image.width), predictor.input_size)
        x = batching.to_tensor(photos.resize(image, size))[None]
        begun = time.perf_counter()
        segmenter.probabilities(predictor.net, x.to(predictor.device)).float().cpu()
        spent += time.perf_counter() - begun
    return spent


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
            fresh(model, options.arch)
        for folder, count, size in (("small", options.photos, SMALL), ("large", 3, LARGE)):
            (root / folder).mkdir()
            for i in range(count):
                photograph(root / f"{folder}/{i}.jpg", *size, i)
        predictor = load(model, input_size="original")
        predictor.predict(root / "small/0.jpg")  # the first call takes longer
        least = alone(predictor, root / "small")
        network, total = inside(predictor, root / "small", root / "out")
        each = options.photos
        print(f"{torch.get_num_threads()} threads of torch, {each} photographs of {SMALL[1]} x {SMALL[0]} pixels")
        print(f"{1e3 * total / each:.0f} ms a photograph, {100 * network / total:.1f} % of it inside the network (at least 90 %)")
        print(f"the network alone: {1e3 * least / each:.0f} ms a photograph, {100 * least / total:.1f} % of the whole")
        given = {"root": str(ROOT), "model": str(model), "photo": str(root / "large"), "out": str(root / "out-large")}
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", PEAK.format(**given)], capture_output=True, text=True, check=True)
        kib = int(done.stdout.split()[-1]) / (1024 if sys.platform == "darwin" else 1)
        took = time.perf_counter() - start
        print(f"3 of {LARGE[1]} x {LARGE[0]}: {took:.1f} s, peak memory {kib / 2**20:.2f} GiB (at most 3)")


if __name__ == "__main__":
    main()
