"""mIoU of a linear probe on the segmenter's frozen features."""

from typing import Any

from unseg.core import image_index, label_maps, params, rounds, storage
from unseg.core.console import run
from unseg.engine.checkpoint import Checkpoint
from unseg.evaluation import linear_probe, metrics, protocols
from unseg.segmentation import crf, segmenter

PROTOCOL = (
    "1x1 convolution on frozen features, trained on the truth of {count} training images: {p.epochs} epochs, batch {p.batch}, "
    "SGD lr {p.lr:g}, a tenth of it after {full} epochs (paper: 45, 24, 0.1, 25); clusters are not matched; "
)


def main(index: str, images: str, truth: str, weights: str, results: str, details: str) -> None:
    p, q, seed = (
        params.group("linear", linear_probe.Linear),
        params.group("predict", segmenter.Predict),
        params.value("seed", int),
    )
    net, classes, maps = segmenter.load(weights), label_maps.class_names(truth), label_maps.LabelMaps(truth, "semantic/")
    train_images = [i for i in image_index.train_images(index) if i in maps]
    eval_images = [i for i in image_index.eval_images(index) if i in maps]
    if not train_images or not eval_images:
        needs = f"ground truth: {truth} has no label map of a training image and of an evaluation image"
        storage.write_json(details, {"images": 0, "needs": needs})
        storage.write_json(results, {})
        return
    with Checkpoint("evaluate_linear", [p, seed], [index, truth, weights, images]) as checkpoint:
        probe = linear_probe.train(p, net, len(classes), images, train_images, maps, seed, checkpoint)
        counts, refined = linear_probe.evaluate(
            probe, images, eval_images, maps, q, params.group("crf", crf.Crf) if p.crf else None
        )
        ious = metrics.iou(counts)
        protocol = PROTOCOL.format(count=len(train_images), p=p, full=p.lr_milestone + 1)
        sentences = {"miou": protocol + protocols.MEAN, "pixel_accuracy": protocol + "fraction of right pixels"}
        scores: dict[str, Any] = {
            "miou": metrics.rounded(metrics.mean(ious)),
            "pixel_accuracy": metrics.rounded(metrics.pixel_accuracy(counts)),
            "class_iou": {name: metrics.rounded(x) for name, x in zip(classes, ious, strict=True)},
            "images": len(eval_images),
            "seeds": [seed],
        }
        scores |= {"human_labels": 1} if params.value("final", str) in rounds.human_rounds() else {}
        if refined is not None:
            sentences["miou_crf"] = f"as miou, after the CRF of params.yaml: {sentences['miou']}"
            scores["miou_crf"] = metrics.rounded(metrics.mean(metrics.iou(refined)))
        storage.write_json(details, scores | {"protocols": protocols.to_records(sentences)})
        storage.write_json(results, metrics.headline(scores, "miou", "miou_crf", "pixel_accuracy", "human_labels"))


if __name__ == "__main__":
    run(main)
