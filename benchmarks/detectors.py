"""What the detector finds of several objects an image: the demo's recipe beside what goes beyond the paper, over several seeds.

    python benchmarks/detectors.py [--seeds 0 1 2] [--kinds plain drop objects both] [--into FOLDER] [--set key=value ...]

Each seed draws the demo's scenes in a copy of this working tree and pre-trains once; then each kind is `dvc repro
evaluate_instances` with its own values. Prints AR@10 of the mined masks, AR@10 and AP50 of all detections, and of those alone
that are as sure as aggregate.threshold, from which label maps are made (class-agnostic, all objects, held-out scenes).
Kinds: plain; drop: DropLoss; objects: three masks an image; both; round: one of self-training; fpn and c4: torchvision's and
Detectron2's ResNet-50 at the same settings (c4 where Detectron2 is installed).
"""

import contextlib
import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.demo import arguments, call, copy
from unseg.core import image_index, storage
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
    into = options.into or Path(tempfile.mkdtemp())
    rows: dict[str, list[list[float]]] = {kind: [] for kind in options.kinds}
    for seed in options.seeds:
        root = into / f"seed{seed}"
        root.mkdir(parents=True)
        for kind, scores in rows.items():
            params = copy(root, seed, [*KINDS[kind], *options.set])
            call(root, "dvc", "repro", "evaluate_instances")
            scores.append(judged(root, str(params["detections"]), float(params["aggregate"]["threshold"])))
            show(f"seed {seed}", kind, scores[-1])
    for kind, scores in rows.items():
        show("mean", kind, np.mean(scores, 0).tolist())
    if options.into is None:
        shutil.rmtree(into)


def judged(root: Path, detections: str, sure: float) -> list[float]:
    """AR@10 of the mined masks; AR@10 and AP50 of all detections; of the sure ones."""
    asked = {i.id for i in image_index.eval_images(root / "data/images.json")}
    objects = loading.objects(str(root / "data/truth.zip"), asked)["annotations"]

    def scores(found: list[dict[str, Any]]) -> dict[str, float]:
        with contextlib.redirect_stdout(io.StringIO()):
            return metrics.average_precision(objects, [d for d in found if d["image_id"] in asked], aware=False)[0]

    mined = [{**m, "score": 1.0} for m in storage.read_json(root / "data/masks.json")["annotations"]]
    found = storage.read_json(root / f"data/{detections}.json")
    every, some = scores(found), scores([d for d in found if d["score"] >= sure])
    return [scores(mined)["AR@10"], every["AR@10"], every["AP50"], some["AR@10"], some["AP50"]]


def show(what: str, kind: str, scores: list[float]) -> None:
    mined, recall, precision, sure_recall, sure_precision = scores
    print(
        f"{what:6}  {kind:7}  masks' AR@10 {mined:.3f}  AR@10 {recall:.3f}  AP50 {precision:.3f}  "
        f"sure AR@10 {sure_recall:.3f}  AP50 {sure_precision:.3f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
