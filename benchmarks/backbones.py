"""The demo's backbones compared: CrOC, DINO's loss alone (alpha = 0), and random weights, over several seeds.

    python benchmarks/backbones.py [--kinds croc dino random] [--seeds 0 1 2] [--into FOLDER] [--set key=value ...]

Each seed draws the demo's scenes in a copy of this working tree and pre-trains twice; then the objects are mined with each
backbone. Prints K-means segmentation mIoU on the held-out scenes (5 K-means seeds, K = number of classes, at the demo's own
size) and the mean IoU of the mined masks with the object that fits best, with means.
"""

import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.demo import arguments, call, copy
from unseg.core import image_index, instances, label_maps
from unseg.core.instances import Instance
from unseg.evaluation import loading, metrics
from unseg.evaluation.backbones import kmeans, sets
from unseg.models import vit
from unseg.models.weights import RANDOM_INIT

KINDS: dict[str, dict[str, Any]] = {"croc": {}, "dino": {"croc.alpha": 0.0}, "random": {"backbone.weights": "models/fresh"}}


def change(root: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Write the settings into params.yaml; returns what it holds."""
    file = root / "params.yaml"
    content: dict[str, Any] = yaml.safe_load(file.read_text())
    for key, value in settings.items():
        group, name = key.split(".")
        content[group][name] = value
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return content


def examples(root: Path, folder: str) -> list[sets.Example]:
    """The held-out scenes, their truth laid out as PNGs."""
    with zipfile.ZipFile(root / "data/truth.zip") as archive:
        archive.extractall(root / "truth")
    classes = range(len(label_maps.class_names(root / "data/truth.zip")))
    return [
        sets.Example(str(root / folder / i.file_name), str(root / f"truth/semantic/{i.file_name}.png"), {c: c for c in classes})
        for i in image_index.eval_images(root / "data/images.json")
    ]


def kmeans_miou(shape: vit.Backbone, found: list[sets.Example], size: int) -> float:
    p = kmeans.BackboneKmeans(
        size=size, grid=size, components=50, clusters=None, starts=5, iterations=100, seeds=5, batch=1, precision="fp32"
    )
    masks, tokens = kmeans.read_tokens(p, vit.load(shape), found)
    reduced, k = kmeans.reduce(tokens.reshape(-1, tokens.shape[-1]), p.components), len(found[0].classes)
    mious = []
    for seed in range(p.seeds):
        labels = kmeans.cluster(p, reduced, k, seed).reshape(tokens.shape[:3])
        mious.append(metrics.mean(kmeans.score(labels, masks, k, k)))
    return float(np.mean(mious))


def fit(root: Path) -> float:
    """Mean IoU of the mined masks of the training images."""
    index = root / "data/images.json"
    train_images = image_index.train_images(index)
    objects = loading.read_objects(str(root / "data/truth.zip"), train_images).objects
    mined = instances.read(root / "data/masks.json", Instance, image_index.read_images(index), train_images)
    return metrics.mask_quality(objects, [instances.as_detection(x) for x in mined])["mean_iou"]


def main() -> None:
    options = arguments(__doc__, KINDS, list(KINDS))
    into = options.into or Path(tempfile.mkdtemp())
    rows: dict[str, list[tuple[float, float]]] = {kind: [] for kind in options.kinds}
    for seed in options.seeds:
        root = into / f"seed{seed}"
        root.mkdir(parents=True)
        params = copy(root, seed, options.set)
        before = {key: params[key.split(".")[0]][key.split(".")[1]] for kind in KINDS.values() for key in kind}
        for kind, settings in ((kind, KINDS[kind]) for kind in options.kinds):
            content = change(root, before | settings)
            call(root, "dvc", "repro", "mine")
            found = examples(root, content["data"]["images"])
            given = {k: content["backbone"][k] for k in ("patch", "width", "depth", "heads")}
            weights = content["backbone"]["weights"]
            shape = vit.Backbone(weights if weights == RANDOM_INIT else str(root / weights), **given)
            side = content["demo"]["size"] // shape.patch * shape.patch
            rows[kind].append((kmeans_miou(shape, found, side), fit(root)))
            print(
                f"seed {seed}  {kind:6}  K-means mIoU {rows[kind][-1][0]:.3f}  mined-mask IoU {rows[kind][-1][1]:.3f}", flush=True
            )
    for kind, scores in rows.items():
        clustered, mined = np.mean(scores, 0)
        spread = np.ptp(scores, 0)
        print(
            f"mean    {kind:6}  K-means mIoU {clustered:.3f} (spread {spread[0]:.3f})  "
            f"mined-mask IoU {mined:.3f} (spread {spread[1]:.3f})"
        )
    if options.into is None:
        shutil.rmtree(into)


if __name__ == "__main__":
    main()
