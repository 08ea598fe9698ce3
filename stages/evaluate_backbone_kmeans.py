"""mIoU of K-means on a ViT's patch tokens, after Hungarian matching: mean and deviation over seeds."""

import numpy as np

from unseg.core import params, storage
from unseg.core.console import InputError, run, track
from unseg.evaluation import metrics, protocols
from unseg.evaluation.backbones import kmeans, sets
from unseg.evaluation.backbones.kmeans import BackboneKmeans
from unseg.models import vit

PROTOCOL = (
    "K-means on the standardised patch tokens (PCA) of all judged images together, clusters matched to classes on IoU "
    "(Hungarian; by majority where clusters outnumber classes), background one of them; mean over classes, void left out"
)


def main(weights: str, kind: str, root: str, val: str, name: str, out: str) -> None:
    p = params.group("backbone_kmeans", BackboneKmeans)
    fresh = vit.Backbone(weights, **{key: params.value(f"backbone.{key}", int) for key in ("patch", "width", "depth", "heads")})
    data = sets.Set(kind, root, "", val.removeprefix(f"{root}/"), share=1.0)
    shape = vit.shape_of(weights, fresh)
    sets.check_size("backbone_kmeans", p.size, shape.patch, weights)
    classes, examples = sets.read(data, data.val)
    judged = kmeans.judged(examples, p.batch)
    if not judged:
        raise InputError(f"{val} names {len(examples)} images; backbone_kmeans.batch, {p.batch}, leaves none of them: lower it")
    masks, tokens = kmeans.gather(p, vit.load(shape), judged)
    reduced = kmeans.reduce(tokens.reshape(-1, tokens.shape[-1]), p.components)
    k, ious = p.clusters or len(classes), []
    for seed in track(range(p.seeds), "K-means"):
        labels = kmeans.cluster(p, reduced, k, seed).reshape(tokens.shape[:3])
        ious.append(kmeans.score(labels, masks, len(classes), k))
    mious = np.array([metrics.mean(each) for each in ious])
    scores = {
        "backbone": name,
        "miou": metrics.rounded(mious.mean()),
        "miou_std": metrics.rounded(mious.std()),
        "class_iou": [{"class": c, "iou": metrics.rounded(v)} for c, v in zip(classes, np.mean(ious, 0), strict=True)],
        "clusters": k,
        "images": len(judged),
        "seeds": p.seeds,
        "protocols": protocols.described({"miou": PROTOCOL}),
    }
    storage.write_json(out, scores)


if __name__ == "__main__":
    run(main)
