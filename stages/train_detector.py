"""Train Mask R-CNN on the clustered masks of the train images."""

from pathlib import Path

from unseg.core import image_index, params
from unseg.core.console import InputError, run
from unseg.core.instances import Instance, read_by_image
from unseg.detection import detector
from unseg.detection.settings import Detector
from unseg.engine import training
from unseg.engine.checkpoint import Checkpoint


def main(index: str, instances: str, images: str, weights: str, history: str) -> None:
    p, k, seed = params.group("detector", Detector), params.value("cluster.k", int), params.value("seed", int)
    all_images, train_images = image_index.read_images(index), image_index.train_images(index)
    objects = {i.id: x for i, x in read_by_image(instances, Instance, all_images, train_images, k) if x}
    if not objects:
        raise InputError(f"{instances} has no object in a training image; look at data/masks.json and at mine in params.yaml")
    with Checkpoint("train_detector", [p, k, seed], [index, instances, images, p.init]) as checkpoint:
        model, values = detector.train(p, k, images, train_images, objects, seed, checkpoint, Path(history).stem)
        detector.save(weights, model, p, k)
        training.write_history(history, values)


if __name__ == "__main__":
    run(main)
