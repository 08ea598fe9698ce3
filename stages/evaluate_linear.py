"""mIoU of a linear probe on the segmenter's frozen features."""

from typing import Any

from unseg.core import image_index, label_maps, params, storage
from unseg.core.console import run
from unseg.engine.checkpoint import Checkpoint
from unseg.evaluation import linear_probe, metrics, protocols
from unseg.segmentation import crf, segmenter

PROTOCOL = (
    "1x1 convolution on frozen features, trained on the truth of {learned} training images: {p.epochs} epochs, batch {p.batch}, "
    "SGD lr {p.lr:g}, a tenth of it after {full} epochs (paper: 45, 24, 0.1, 25); clusters are not matched; "
)


def main(index: str, folder: str, truth: str, weights: str, out: str, details: str) -> None:
    p, q = params.group("linear", linear_probe.Linear), params.group("predict", segmenter.Predict)
    seed = params.value("seed", int)
    net, classes, maps = segmenter.load(weights), label_maps.class_names(truth), label_maps.LabelMaps(truth, "semantic/")
    learned = [i for i in image_index.train_images(index) if i in maps]
    judged = [i for i in image_index.eval_images(index) if i in maps]
    if not learned or not judged:
        needs = f"ground truth: {truth} has no label map of a training and of a judged image"
        storage.write_json(details, {"images": 0, "needs": needs})
        storage.write_json(out, {})
        return
    with Checkpoint("evaluate_linear", [p, seed], [index, truth, weights, folder]) as checkpoint:
        probed = linear_probe.probe(p, net, len(classes), folder, learned, maps, seed, checkpoint)
        counts, refined = linear_probe.judge(probed, folder, judged, maps, q, params.group("crf", crf.Crf) if p.crf else None)
        ious = metrics.iou(counts)
        how = PROTOCOL.format(learned=len(learned), p=p, full=p.lr_milestone + 1)
        numbers = {"miou": how + protocols.MEAN, "pixel_accuracy": how + "share of the right pixels"}
        numbers |= {"miou_crf": f"as miou, after the CRF of params.yaml: {numbers['miou']}"} if refined is not None else {}
        scores: dict[str, Any] = {
            "miou": metrics.rounded(metrics.mean(ious)),
            "pixel_accuracy": metrics.rounded(metrics.pixel_accuracy(counts)),
            "class_iou": {name: metrics.rounded(v) for name, v in zip(classes, ious, strict=True)},
            "images": len(judged),
            "seeds": [seed],
            "protocols": protocols.described(numbers),
        }
        if refined is not None:
            scores["miou_crf"] = metrics.rounded(metrics.mean(metrics.iou(refined)))
        storage.write_json(details, scores)
        storage.write_json(out, metrics.headline(scores, "miou", "miou_crf", "pixel_accuracy"))


if __name__ == "__main__":
    run(main)
