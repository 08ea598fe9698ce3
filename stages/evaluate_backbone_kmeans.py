"""mIoU of K-means on a ViT's patch tokens, after Hungarian matching: mean and standard deviation over seeds."""

import numpy as np

from unseg.core import params, storage
from unseg.core.console import InputError, run, track
from unseg.evaluation import metrics, protocols
from unseg.evaluation.backbones import kmeans, sets
from unseg.evaluation.backbones.kmeans import BackboneKmeans

PROTOCOL = (
    "K-means on the standardised patch tokens (PCA) of all evaluation images together, clusters matched to classes on IoU "
    "(Hungarian; by majority where clusters outnumber classes), background one of them; mean over classes, void left out"
)


def main(weights: str, kind: str, root: str, val: str, name: str, results: str) -> None:
    p = params.group("backbone_kmeans", BackboneKmeans)
    model, data = sets.load_backbone(weights, "backbone_kmeans", p.size), sets.read_set(kind, root, "", val, 1.0)
    classes, examples = sets.read_examples(data, data.val)
    images = kmeans.whole_batches(examples, p.batch)
    if not images:
        raise InputError(f"{val} names {len(examples)} images; backbone_kmeans.batch, {p.batch}, leaves none of them: lower it")
    masks, tokens = kmeans.read_tokens(p, model, images)
    reduced = kmeans.reduce(tokens.reshape(-1, tokens.shape[-1]), p.components)
    k, ious = p.clusters or len(classes), []
    for seed in track(range(p.seeds), "K-means"):
        labels = kmeans.cluster(p, reduced, k, seed).reshape(tokens.shape[:3])
        ious.append(kmeans.score(labels, masks, len(classes), k))
    mious = np.array([metrics.mean(x) for x in ious])
    scores = {
        "backbone": name,
        "miou": metrics.rounded(mious.mean()),
        "miou_std": metrics.rounded(mious.std()),
        "class_iou": [{"class": c, "iou": metrics.rounded(x)} for c, x in zip(classes, np.mean(ious, 0), strict=True)],
        "clusters": k,
        "images": len(images),
        "seeds": p.seeds,
        "protocols": protocols.to_records({"miou": PROTOCOL}),
    }
    storage.write_json(results, scores)


if __name__ == "__main__":
    run(main)
