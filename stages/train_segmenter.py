"""Train a segmenter, DeepLab-v3 or a ViT student, on the label maps of the train images."""

from pathlib import Path

from unseg.core import image_index, label_maps, params
from unseg.core.console import run
from unseg.engine import training
from unseg.engine.checkpoint import Checkpoint
from unseg.segmentation import segmenter


def main(index: str, labels: str, images: str, weights: str, history: str) -> None:
    p, k, seed = params.group("segmenter", segmenter.Segmenter), params.value("cluster.k", int), params.value("seed", int)
    train_images, maps = image_index.train_images(index), label_maps.LabelMaps(labels)
    backbone, init = None, p.init
    if p.arch == "vit":
        from unseg.models import vit  # imports timm, which takes seconds

        backbone = params.group("backbone", vit.Backbone)
        init = backbone.weights
    with Checkpoint("train_segmenter", [p, backbone, k, seed], [index, labels, images, init]) as checkpoint:
        name = Path(history).stem
        model, values = segmenter.train(p, k, images, train_images, maps, seed, checkpoint, name, backbone)
        segmenter.save(weights, model, p, k, backbone)
        training.write_history(history, values)


if __name__ == "__main__":
    run(main)
