"""Train DeepLab-v3 on the label maps of the train images."""

from unseg.core import image_index, label_maps, params
from unseg.core.console import run
from unseg.engine import training
from unseg.engine.checkpoint import Checkpoint
from unseg.segmentation import segmenter


def main(index: str, labels: str, images: str, weights: str, history: str) -> None:
    p, k, seed = params.group("segmenter", segmenter.Segmenter), params.value("cluster.k", int), params.value("seed", int)
    train_images, maps = image_index.train_images(index), label_maps.LabelMaps(labels)
    with Checkpoint("train_segmenter", [p, k, seed], [index, labels, images, p.init]) as checkpoint:
        model, values = segmenter.train(p, k, images, train_images, maps, seed, checkpoint, "segmenter")
        segmenter.save(weights, model, p, k)
        training.write_history(history, values)


if __name__ == "__main__":
    run(main)
