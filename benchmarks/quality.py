"""How well quality measures without labels track scores with labels: rank correlation over two sweeps, without training.

    python -m benchmarks.quality WEIGHTS [...]   e.g. models/croc.safetensors, or `random` for an untrained ViT
        [--images data/images.json] [--photos data/raw/demo/images] [--truth data/truth.zip] [--count 60] [--seeds 0 1]

Runs in the folder of a finished run, on its params.yaml.
mining: mine.keep, mine.center and mine.resize vary for each backbone. With labels: mean IoU of the mask with the object that
it fits best (or the region of a class, if there are label maps only). Without: stability under mirroring and cropping, and how
plausible area and border are (larger is better for all).
clusters: cluster.k, cluster.whiten and the seed vary on data/cls_tokens.npz. With labels: adjusted mutual information of the
clusters and the classes of the objects under the masks. Without: silhouette, stability of halves, balance, choose_k's score.
Prints each point of the sweeps, and Spearman's rho with its bootstrap interval of 90 %.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.metrics import adjusted_mutual_info_score

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from unseg.clustering import algorithms, choice
from unseg.core import image_index, instances, params
from unseg.core.image_index import ImageRecord
from unseg.core.instances import Instance
from unseg.core.label_maps import IGNORE_LABEL, LabelMaps
from unseg.data import photos
from unseg.evaluation import loading, metrics
from unseg.evaluation.label_free import quality, stability
from unseg.mining import affinity, miner
from unseg.models import vit

KEEPS, CENTERS, SCALES = (0.1, 0.2, 0.4, 0.6), (True, False), (0.5, 1.0)
WHITEN: tuple[Literal["std", "pca", "none"], ...] = ("std", "none", "pca")
PLAUSIBLE = 0.25  # most plausible area of an object, as a fraction of the image


def true_objects(truth: str, image: ImageRecord, objects: dict[int, list[Instance]]) -> list[tuple[int, np.ndarray]]:
    """Class and mask [H, W] bool of each true object; if there are no objects, of the region of each class."""
    if objects:
        return [(x.category_id, x.mask.decode()) for x in objects.get(image.id, []) if not x.iscrowd]
    labels = LabelMaps(truth, "semantic/")[image]
    return [(int(c), labels == c) for c in np.unique(labels) if c not in (0, IGNORE_LABEL)]


def backbone(name: str, shape: vit.Backbone, seed: int) -> Any:
    if name != "random":
        return vit.load(replace(shape, weights=name))
    torch.manual_seed(seed)
    return vit.build(shape.shape(), 224).eval()


def mining(options: argparse.Namespace, images: Sequence[ImageRecord], truths: dict[int, Any]) -> Iterator[dict[str, Any]]:
    shape, p = params.group("backbone", vit.Backbone), params.group("mine", affinity.Mining)
    for name, keep, center, scale in itertools.product(options.weights, KEEPS, CENTERS, SCALES):
        model = backbone(name, shape, 0)
        varied = replace(p, keep=keep, center=center, resize=max(vit.patch_size(model), round(scale * p.resize)))

        def read(image: ImageRecord) -> Any:
            return photos.read(options.photos, image)

        mined = list(miner.mine_first_object(model, images, lambda i: i.size, read, varied))
        best_ious = [max((quality.binary_iou(mask, m) for _, m in truths[i.id]), default=np.nan) for i, mask in mined]
        flip, crop = stability.measure_mining(model, options.photos, mined, varied)
        areas = [float(mask.mean()) for _, mask in mined]
        yield {
            "run": f"{Path(name).stem} keep {keep} center {center} resize {varied.resize}",
            "true": float(np.nanmean(best_ious)),
            "same when mirrored": flip,
            "same when cropped": crop,
            "area near a quarter": -float(np.mean(np.abs(np.array(areas) - PLAUSIBLE))),
            "little border": -metrics.mean([quality.border(mask) for _, mask in mined]),
            "areas vary": float(np.std(areas)),
        }


def classes_of(truths: dict[int, Any], ids: Sequence[int], masks: dict[int, Instance]) -> np.ndarray:
    """The class of the object that each mask fits best; 0 for none."""
    classes = []
    for mask in (masks[id] for id in ids):
        pixels = mask.mask.decode()
        best, c = max(((quality.binary_iou(pixels, m), c) for c, m in truths[mask.image_id]), default=(0.0, 0))
        classes.append(c if best > 0 else 0)
    return np.array(classes)


def clusters(options: argparse.Namespace, truths: dict[int, Any]) -> Iterator[dict[str, Any]]:
    masks = {x.id: x for x in instances.read("data/masks.json", Instance, image_index.read_images(options.images))}
    stored, p = np.load("data/cls_tokens.npz"), params.group("cluster", algorithms.Clustering)
    kept = [n for n, id in enumerate(stored["ids"].tolist()) if masks[id].image_id in truths]
    tokens, true = stored["tokens"][kept], classes_of(truths, stored["ids"][kept].tolist(), masks)
    for whiten, seed in itertools.product(WHITEN, options.seeds):
        ks = [k for k in (2, 3, 4, 6, 8, 12, 16, 24) if 4 * k < len(kept)]
        q = choice.Choosing(ks, 3, len(kept), 2)
        trials = choice.sweep(tokens, replace(p, whiten=whiten), q, seed)
        for t, k in enumerate(trials.ks):
            labels = algorithms.cluster(tokens, tokens, replace(p, k=k, whiten=whiten, starts=2, support=None), seed)
            yield {
                "run": f"K {k} whiten {whiten} seed {seed}",
                "true": float(adjusted_mutual_info_score(true, labels)),
                "silhouette": float(trials.silhouette[t].mean()),
                "stability of halves": float(trials.stability[t].mean()),
                "score of choose_k": float(trials.score[t].mean()),
                "balance": quality.balance(np.bincount(labels, minlength=k)),
            }


def report(what: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{what}: {len(rows)} runs")
    for row in sorted(rows, key=lambda r: -r["true"]):
        print("  " + "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{v}" for k, v in row.items()))
    rng, true = np.random.default_rng(0), np.array([r["true"] for r in rows])
    for key in [k for k in rows[0] if k not in ("run", "true")]:
        x = np.array([r[key] for r in rows])
        draws = [rng.integers(0, len(rows), len(rows)) for _ in range(500)]
        rhos = [spearmanr(x[d], true[d]).statistic for d in draws if len(set(true[d])) > 1 and len(set(x[d])) > 1]
        low, high = np.nanquantile(rhos, (0.05, 0.95)) if rhos else (np.nan, np.nan)
        print(f"{key:20} rho {spearmanr(x, true).statistic:+.2f}  (90 %: {low:+.2f} to {high:+.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="*", help="ViTs to mine with (default: none, only clusters)")
    parser.add_argument("--images", default="data/images.json")
    parser.add_argument("--photos", default="data/raw/demo/images")
    parser.add_argument("--truth", default="data/truth.zip")
    parser.add_argument("--count", type=int, default=60, help="evaluation images for the sweep over mining")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    maps = LabelMaps(options.truth, "semantic/")
    images = [image for image in image_index.eval_images(options.images) if image in maps]
    if not images:
        sys.exit(f"{options.truth} has no label map of an evaluation image; this benchmark needs ground truth")
    objects = metrics.group_by_image(loading.read_objects(options.truth, images).objects)
    truths = {image.id: true_objects(options.truth, image, objects) for image in images}
    if options.weights:
        report("mining", list(mining(options, image_index.evenly_spaced(images, options.count), truths)))
    if Path("data/cls_tokens.npz").exists():
        report("clusters", list(clusters(options, truths)))


if __name__ == "__main__":
    main()
