"""Backbones of the demo: CrOC, DINO's loss alone (alpha = 0), and random weights, over several seeds.

    python benchmarks/backbones.py [--kinds croc dino random] [--seeds 0 1 2] [--into FOLDER] [--set key=value ...]

Each seed draws the demo's scenes in a copy of this working tree and pre-trains twice; then objects are mined with each
backbone. Prints the mIoU of K-means on the patch tokens of the evaluation images (5 K-means seeds, K = number of classes, at
the demo's size), and the mean IoU of the train images' mined masks with the objects that they fit best.
"""

import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.demo import arguments, call, copy, edit_params, seed_folders
from unseg.core import image_index, instances, label_maps
from unseg.core.instances import Instance
from unseg.evaluation import loading, metrics
from unseg.evaluation.backbones import kmeans, sets
from unseg.models import vit
from unseg.models.weights import RANDOM_INIT

KINDS: dict[str, dict[str, Any]] = {"croc": {}, "dino": {"croc.alpha": 0.0}, "random": {"backbone.weights": "models/fresh"}}


def examples(root: Path, folder: str) -> list[sets.Example]:
    """The evaluation images, with their ground truth unpacked to PNGs."""
    with zipfile.ZipFile(root / "data/truth.zip") as archive:
        archive.extractall(root / "truth")
    classes = range(len(label_maps.class_names(root / "data/truth.zip")))
    return [
        sets.Example(str(root / folder / i.file_name), str(root / f"truth/semantic/{i.file_name}.png"), {c: c for c in classes})
        for i in image_index.eval_images(root / "data/images.json")
    ]


def kmeans_miou(model: vit.ViT, images: list[sets.Example], size: int) -> float:
    p = kmeans.BackboneKmeans(
        size=size, grid=size, components=50, clusters=None, starts=5, iterations=100, seeds=5, batch=1, precision="fp32"
    )
    masks, tokens = kmeans.read_tokens(p, model, images)
    reduced, k = kmeans.reduce(tokens.reshape(-1, tokens.shape[-1]), p.components), len(images[0].classes)
    mious = []
    for seed in range(p.seeds):
        labels = kmeans.cluster(p, reduced, k, seed).reshape(tokens.shape[:3])
        mious.append(metrics.mean(kmeans.score(labels, masks, k, k)))
    return float(np.mean(mious))


def mask_iou(root: Path) -> float:
    """Mean IoU of the train images' mined masks with the objects that they fit best."""
    index = root / "data/images.json"
    train_images = image_index.train_images(index)
    objects = loading.read_objects(str(root / "data/truth.zip"), train_images).objects
    mined = instances.read(root / "data/masks.json", Instance, image_index.read_images(index), train_images)
    return metrics.mask_quality(objects, [instances.as_detection(x) for x in mined])["mean_iou"]


def main() -> None:
    options = arguments(__doc__, KINDS, list(KINDS))
    rows: dict[str, list[tuple[float, float]]] = {kind: [] for kind in options.kinds}
    for seed, root in seed_folders(options):
        params = copy(root, seed, options.set)
        before = {key: params[key.split(".")[0]][key.split(".")[1]] for kind in KINDS.values() for key in kind}
        for kind in options.kinds:
            params = edit_params(root, before | KINDS[kind])
            call(root, "dvc", "repro", "mine")
            weights = params["backbone"]["weights"]
            shape = {key: params["backbone"][key] for key in ("patch", "width", "depth", "heads")}
            model = vit.load(vit.Backbone(weights if weights == RANDOM_INIT else str(root / weights), **shape))
            patch = vit.patch_size(model)
            side = params["demo"]["size"] // patch * patch
            scores = kmeans_miou(model, examples(root, params["data"]["images"]), side), mask_iou(root)
            rows[kind].append(scores)
            print(f"seed {seed}  {kind:6}  K-means mIoU {scores[0]:.3f}  mined-mask IoU {scores[1]:.3f}", flush=True)
    for kind, of_seeds in rows.items():
        (clustered, mined), (spread_clustered, spread_mined) = np.mean(of_seeds, 0), np.ptp(of_seeds, 0)
        print(
            f"mean    {kind:6}  K-means mIoU {clustered:.3f} (spread {spread_clustered:.3f})  "
            f"mined-mask IoU {mined:.3f} (spread {spread_mined:.3f})"
        )


if __name__ == "__main__":
    main()
