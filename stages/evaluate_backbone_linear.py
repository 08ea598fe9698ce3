"""mIoU of a linear probe on a ViT's frozen patch tokens."""

from unseg.core import params, storage
from unseg.core.console import run
from unseg.engine.checkpoint import Checkpoint
from unseg.evaluation import metrics, protocols
from unseg.evaluation.backbones import linear, sets
from unseg.evaluation.backbones.linear import BackboneLinear
from unseg.models import vit

PROTOCOL = (
    "1x1 convolution on frozen patch tokens, trained on crops of the set's training images; judged on its held-out images as "
    "squares, at their full resolution; mean over classes, void left out"
)


def main(weights: str, kind: str, root: str, train: str, val: str, share: str, name: str, out: str) -> None:
    p, seed = params.group("backbone_linear", BackboneLinear), params.value("seed", int)
    fresh = vit.Backbone(weights, **{key: params.value(f"backbone.{key}", int) for key in ("patch", "width", "depth", "heads")})
    below = [path.removeprefix(f"{root}/") for path in (train, val)]
    data = sets.Set(kind, root, below[0], below[1], float(share))
    shape = vit.shape_of(weights, fresh)
    sets.check_size("backbone_linear", p.size, shape.patch, weights)
    model, (classes, learned), (_, judged) = vit.load(shape), sets.read(data, data.train), sets.read(data, data.val)
    learned = linear.part_of(learned, data.share, seed)
    with Checkpoint("evaluate_backbone_linear", [p, data, seed, vars(shape)], [weights, train, val]) as checkpoint:
        layer = linear.learn(p, model, len(classes), learned, seed, checkpoint)
        counts = linear.judge(p, model, layer, judged)
        ious = metrics.iou(counts)
        scores = {
            "backbone": name,
            "miou": metrics.rounded(metrics.mean(ious)),
            "pixel_accuracy": metrics.rounded(metrics.pixel_accuracy(counts)),
            "class_iou": [{"class": c, "iou": metrics.rounded(v)} for c, v in zip(classes, ious, strict=True)],
            "images": len(judged),
            "learned": len(learned),
            "protocols": protocols.described({"miou": PROTOCOL}),
        }
        storage.write_json(out, scores)


if __name__ == "__main__":
    run(main)
