"""What `unseg predict` costs beside its network: the share of time inside it, and the memory of a large photograph.

    python benchmarks/predict.py [--model FILE] [--arch resnet50] [--photos 12]

Predicts drawn photographs of 500 x 375 pixels, written to a temporary folder, as `unseg predict` does (reading, blending,
overlays, JSON), and one of 3264 x 2448 pixels (8 megapixels) in a process of its own, whose peak memory is printed. Without
--model, a segmenter of the shape of params.yaml, or with --arch resnet50 of the paper's, with weights as they are drawn: time
and memory do not depend on what it has learned. Targets: at least 90 % inside the network on a CPU; at most 3 GiB.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from unseg import params  # noqa: E402
from unseg.api import load  # noqa: E402
from unseg.cli.predict import predict  # noqa: E402
from unseg.segmentation import segmenter, tiles  # noqa: E402

PEAK = """
import resource, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from unseg.api import load
from unseg.cli.predict import predict
predict(load({model!r}), Path({photo!r}), Path({out!r}))
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
    segmenter.store(path, segmenter.DeepLab(**shape), shape, p.size, p.precision)


def inside(folder: Path, model: Path, out: Path) -> tuple[float, float]:
    """Seconds inside the network (softmax included) and in all, for a folder of photographs, after a first call."""
    predictor = load(model)
    predictor.predict(next(folder.iterdir()))
    spent = 0.0
    timed = tiles.probabilities

    def probabilities(*given: Any) -> Any:
        nonlocal spent
        begun = time.perf_counter()
        answer = timed(*given)
        spent += time.perf_counter() - begun
        return answer

    tiles.probabilities = probabilities
    start = time.perf_counter()
    predict(predictor, folder, out)
    return spent, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--arch", choices=["resnet18", "resnet50"])
    parser.add_argument("--photos", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        model = options.model or root / "model.safetensors"
        if not options.model:
            fresh(model, options.arch)
        (root / "small").mkdir()
        for i in range(options.photos):
            photograph(root / f"small/{i}.jpg", 375, 500, i)
        network, total = inside(root / "small", model, root / "out")
        print(f"500 x 375: {total / options.photos:.3f} s a photograph, {100 * network / total:.1f} % of it inside the network")
        photograph(root / "large.jpg", 2448, 3264, 0)
        words = {"root": str(ROOT), "model": str(model), "photo": str(root / "large.jpg"), "out": str(root / "large")}
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", PEAK.format(**words)], capture_output=True, text=True, check=True)
        kib = int(done.stdout.split()[-1]) / (1024 if sys.platform == "darwin" else 1)
        print(f"3264 x 2448: {time.perf_counter() - start:.1f} s, peak memory {kib / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
