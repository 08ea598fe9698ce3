"""Time of `detect` inside the network, and outside: reading, pasting masks, run lengths, JSON.

    python benchmarks/detect.py [--folder ../shared/data/VOC2012/JPEGImages] [--photos 100] [--backend torchvision]

The detector is that of profiles/voc.yaml (ResNet-50) with random weights. They take as long as trained ones, but their masks
are ragged, so run lengths take rather longer. Each photograph gives --detections detections. There are no loader processes, so
that reading counts whole. Target: at most 20 % outside the network.
"""

import argparse
import json
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image as Pillow

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.mine import now
from unseg.core import image_index, profiles, storage
from unseg.detection import detector
from unseg.detection.settings import Detect, Detector
from unseg.engine import environment
from unseg.models.weights import RANDOM_INIT

SPENT: defaultdict[str, float] = defaultdict(float)  # seconds


def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with its seconds added to SPENT[name]."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        start = now()
        result = call(*args, **kwargs)
        SPENT[name] += now() - start
        return result

    return wrapped


def time_parts(trained: detector.TrainedDetector) -> None:
    """Time the parts of `detect`. Some contain others; main subtracts those."""
    by: Any = detector.backend(trained.p)
    model: Any = trained.model
    detector.read = timed("read", detector.read)  # type: ignore[attr-defined]
    detector.encode_all = timed("run lengths", detector.encode_all)  # type: ignore[attr-defined]
    detector.to_detections = timed("results", detector.to_detections)
    by.find = timed("find", by.find)
    if trained.p.backend == "torchvision":
        model.transform.postprocess = timed("paste", model.transform.postprocess)
        model.forward = timed("model", model.forward)
    else:
        by.detector_postprocess = timed("paste", by.detector_postprocess)
        model.inference = timed("model", model.inference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT.parent / "shared/data/VOC2012/JPEGImages")
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument("--detections", type=int, default=20)
    parser.add_argument("--short-side", type=int, default=800)
    parser.add_argument("--backend", default="torchvision", choices=["torchvision", "detectron2"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    options = parser.parse_args()
    os.environ["UNSEG_WORKERS"] = "0"
    p = profiles.group("voc", "detector", Detector, ROOT / "profiles")
    p = replace(p, backend=options.backend, init=RANDOM_INIT, precision=options.precision)
    q = Detect(options.short_side, 0.0, 1.0, options.detections, 1)
    names = image_index.evenly_spaced(sorted(x.name for x in options.folder.iterdir()), options.photos + 1)
    images = []
    for n, name in enumerate(names):
        with Pillow.open(options.folder / name) as photo:
            images.append(image_index.ImageRecord(n, name, photo.height, photo.width, "val"))
    torch.manual_seed(0)
    trained = detector.prepared(detector.backend(p).build(p, 20), p, q, 20)
    list(detector.detect(trained, detector.load_batches(trained, str(options.folder), images[:1])))  # to warm up
    time_parts(trained)
    start = now()
    batches = detector.load_batches(trained, str(options.folder), images[1:])
    detections = [d for _, of_image in detector.detect(trained, batches) for d in of_image]
    with tempfile.TemporaryDirectory() as folder:
        timed("JSON", lambda: storage.write_json(f"{folder}/detections.json", [d.to_coco() for d in detections]))()
    total = now() - start
    inside = SPENT["model"] - (SPENT["paste"] if options.backend == "torchvision" else 0)
    parts = {
        "inside the network": inside,
        "read": SPENT["read"],
        "paste masks": SPENT["paste"],
        "scale, threshold, move": SPENT["find"] - inside - SPENT["paste"],
        "run lengths": SPENT["run lengths"],
        "other results": SPENT["results"] - SPENT["run lengths"],
        "JSON": SPENT["JSON"],
    }
    parts["tensors, batches"] = total - sum(parts.values())
    photos = len(images) - 1
    print(
        f"{photos} photographs, {len(detections) / photos:.1f} detections each, {options.short_side} px, {environment.device()}"
    )
    for name, seconds in parts.items():
        print(f"{name:24}{1000 * seconds / photos:9.1f} ms per photograph {100 * seconds / total:6.1f} %")
    print(json.dumps({"outside": round(1 - inside / total, 4)}))


if __name__ == "__main__":
    main()
