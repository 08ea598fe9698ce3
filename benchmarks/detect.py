"""Where `detect` spends its time: inside the network, and outside it in reading, pasting masks, run lengths and JSON.

    python benchmarks/detect.py [--folder ../shared/data/VOC2012/JPEGImages] [--photos 100] [--backend torchvision]

The detector has the shape of profiles/voc.yaml (ResNet-50) and weights as they are drawn, which cost what learned ones cost;
their masks are ragged, so run lengths are rather longer. Every photograph gives --detections of them. Loader processes are
off, so that reading counts whole. Target: at most 20 % outside the network.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image as Pillow

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from unseg.core import image_index, profiles, storage
from unseg.detection import detector
from unseg.detection.settings import Detect, Detector
from unseg.engine import environment
from unseg.models.weights import RANDOM_INIT

SPENT: defaultdict[str, float] = defaultdict(float)  # seconds


def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """call, its seconds added to SPENT[name]."""

    def wrapped(*given: Any, **named: Any) -> Any:
        wait()
        begun = time.perf_counter()
        answer = call(*given, **named)
        wait()
        SPENT[name] += time.perf_counter() - begun
        return answer

    return wrapped


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def listen(trained: detector.TrainedDetector) -> None:
    """Time the parts of `detect`; those that lie in others are taken off them in the end."""
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
    every = []
    for n, name in enumerate(names):
        with Pillow.open(options.folder / name) as photo:
            every.append(image_index.ImageRecord(n, name, photo.height, photo.width, "val"))
    torch.manual_seed(0)
    trained = detector.prepared(detector.backend(p).build(p, 20), p, q, 20)
    list(detector.detect(trained, detector.load_batches(trained, str(options.folder), every[:1])))  # once, to warm up
    listen(trained)
    wait()
    begun = time.perf_counter()
    found = [
        r
        for _, results in detector.detect(trained, detector.load_batches(trained, str(options.folder), every[1:]))
        for r in results
    ]
    with tempfile.TemporaryDirectory() as folder:
        timed("JSON", storage.write_json)(f"{folder}/detections.json", found)
    total = time.perf_counter() - begun
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
    photos = len(every) - 1
    print(f"{photos} photographs, {len(found) / photos:.1f} detections each, {options.short_side} px, {environment.device()}")
    for name, seconds in parts.items():
        print(f"{name:24}{1000 * seconds / photos:9.1f} ms a photograph {100 * seconds / total:6.1f} %")
    print(json.dumps({"outside": round(1 - inside / total, 4)}))


if __name__ == "__main__":
    main()
