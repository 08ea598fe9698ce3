"""mIoU of a linear probe on a ViT's frozen patch tokens."""

from unseg.core import params, storage
from unseg.core.console import run
from unseg.engine.checkpoint import Checkpoint
from unseg.evaluation import metrics, protocols
from unseg.evaluation.backbones import linear, sets
from unseg.evaluation.backbones.linear import BackboneLinear

PROTOCOL = (
    "1x1 convolution on frozen patch tokens, trained on crops of the set's training images; evaluated on its validation images "
    "as squares, at their full resolution; mean over classes, void left out"
)


def main(weights: str, kind: str, root: str, train: str, val: str, fraction: str, name: str, results: str) -> None:
    p, seed = params.group("backbone_linear", BackboneLinear), params.value("seed", int)
    model, data = sets.load_backbone(weights, "backbone_linear", p.size), sets.read_set(kind, root, train, val, float(fraction))
    (classes, train_images), (_, eval_images) = (sets.read_examples(data, listed) for listed in (data.train, data.val))
    train_images = linear.random_subset(train_images, data.fraction, seed)
    with Checkpoint("evaluate_backbone_linear", [p, data, seed], [weights, train, val]) as checkpoint:
        layer = linear.train(p, model, len(classes), train_images, seed, checkpoint)
        counts = linear.evaluate(p, model, layer, eval_images)
        ious = metrics.iou(counts)
        scores = {
            "backbone": name,
            "miou": metrics.rounded(metrics.mean(ious)),
            "pixel_accuracy": metrics.rounded(metrics.pixel_accuracy(counts)),
            "class_iou": [{"class": c, "iou": metrics.rounded(x)} for c, x in zip(classes, ious, strict=True)],
            "images": len(eval_images),
            "train_images": len(train_images),
            "protocols": protocols.to_records({"miou": PROTOCOL}),
        }
        storage.write_json(results, scores)


if __name__ == "__main__":
    run(main)
