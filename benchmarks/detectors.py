"""What the detector finds of several objects an image: the demo's recipe beside what goes beyond the paper, over several seeds.

    python benchmarks/detectors.py [--seeds 0 1 2] [--kinds plain drop objects both] [--into FOLDER] [--set key=value ...]

Each seed draws the demo's scenes in a copy of this working tree and pre-trains once; then each kind is `dvc repro
evaluate_instances` with its own values. Prints AR@10 of the mined masks, AR@10 and AP50 of the detections (class-agnostic, all
objects, held-out scenes), and means. Kinds: plain; drop: DropLoss; objects: three masks an image; both; round: one of
self-training; fpn and c4: torchvision's and Detectron2's ResNet-50 at the same settings (c4 where Detectron2 is installed).
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from demo import arguments, call, copy

DROP, OBJECTS = ["detector.drop_iou=0.01"], ["mine.objects=3"]
R50 = ["detector.arch=resnet50", "detector.width=16", "detector.short_sides=[192]", "detector.long_side=256"]
R50 += ["detector.anchor=24", "detect.short_side=192"]
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
            copy(root, seed, [*KINDS[kind], *options.set])
            call(root, "dvc", "repro", "evaluate_instances")
            found = json.loads((root / "results/instances.json").read_text())
            masks, detector = (found[part]["multi"]["agnostic"] for part in ("masks", "detector"))
            scores.append([masks["AR@10"], detector["AR@10"], detector["AP50"]])
            show(f"seed {seed}", kind, scores[-1])
    for kind, scores in rows.items():
        show("mean", kind, np.mean(scores, 0).tolist())
    if options.into is None:
        shutil.rmtree(into)


def show(what: str, kind: str, scores: list[float]) -> None:
    print(f"{what:6}  {kind:7}  masks' AR@10 {scores[0]:.3f}  AR@10 {scores[1]:.3f}  AP50 {scores[2]:.3f}", flush=True)


if __name__ == "__main__":
    main()
