"""Detectors that go beyond the paper, on the demo: several objects per image, DropLoss, self-training, Detectron2.

    python benchmarks/detectors.py [--seeds 0 1 2] [--kinds plain drop objects both] [--into FOLDER] [--set key=value ...]

Each seed draws the demo's scenes in a copy of this working tree and pre-trains once; each kind runs `dvc repro
evaluate_instances` with its values. Prints AR@10 of the mined masks, and AR@10 and AP50 of all detections and of the confident
ones, whose score reaches aggregate.threshold (class-agnostic, all objects of the evaluation images).
Kinds: plain; drop: DropLoss; objects: three masks per image; both; round: one round of self-training; fpn and c4: the
ResNet-50 of torchvision and of Detectron2 at the same settings (c4 needs Detectron2).
"""

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.demo import arguments, call, copy, seed_folders
from unseg.core import image_index, instances
from unseg.core.instances import Detection, Instance
from unseg.evaluation import loading, metrics

DROP, OBJECTS = ["detector.drop_iou=0.01"], ["mine.objects=3"]
R50 = ["detector.arch=resnet50", "detector.width=8", "detector.short_sides=[192]", "detector.long_side=256"]
R50 += ["detector.anchor=24", "detector.rois=32", "detector.precision=auto", "detect.short_side=192"]
KINDS = {
    "plain": [],
    "drop": DROP,
    "objects": OBJECTS,
    "both": [*DROP, *OBJECTS],
    "round": ["retrain=[{instances: instances, detections: detections, to: d1}]", "detections=detections-d1"],
    "fpn": R50,
    "c4": [*R50, "detector.backend=detectron2"],
}


def main() -> None:
    options = arguments(__doc__, KINDS, ["plain", "drop", "objects", "both"])
    rows: dict[str, list[list[float]]] = {kind: [] for kind in options.kinds}
    for seed, root in seed_folders(options):
        for kind, scores in rows.items():
            params = copy(root, seed, [*KINDS[kind], *options.set])
            call(root, "dvc", "repro", "evaluate_instances")
            scores.append(evaluate(root, str(params["detections"]), float(params["aggregate"]["threshold"])))
            show(f"seed {seed}", kind, scores[-1])
    for kind, scores in rows.items():
        show("mean", kind, np.mean(scores, 0).tolist())


def evaluate(root: Path, detections: str, threshold: float) -> list[float]:
    """AR@10 of the mined masks; AR@10 and AP50 of all detections; of the confident ones."""
    index = root / "data/images.json"
    images = image_index.read_images(index), image_index.eval_images(index)
    objects = loading.read_objects(str(root / "data/truth.zip"), images[1]).objects

    def scores(detections: list[Detection]) -> dict[str, float]:
        return metrics.average_precision(objects, detections, class_aware=False)[0]

    mined = [instances.as_detection(x) for x in instances.read(root / "data/masks.json", Instance, *images)]
    detected = instances.read(root / f"data/{detections}.json", Detection, *images)
    total, confident = scores(detected), scores([d for d in detected if d.score >= threshold])
    return [scores(mined)["AR@10"], total["AR@10"], total["AP50"], confident["AR@10"], confident["AP50"]]


def show(seed: str, kind: str, scores: list[float]) -> None:
    names = ("masks' AR@10", "AR@10", "AP50", "confident AR@10", "AP50")
    print(f"{seed:6}  {kind:7}", *(f"{name} {x:.3f}" for name, x in zip(names, scores, strict=True)), sep="  ", flush=True)


if __name__ == "__main__":
    main()
