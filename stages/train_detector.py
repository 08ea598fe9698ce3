"""Mask R-CNN on the labelled masks of the training images."""

from unseg.core import image_index, params, storage
from unseg.core.console import InputError, run
from unseg.detection import detector
from unseg.detection.settings import Detector
from unseg.engine import training
from unseg.engine.checkpoint import Checkpoint


def main(index: str, instances: str, folder: str, weights: str, history: str) -> None:
    p, k, seed = params.group("detector", Detector), params.value("cluster.k", int), params.value("seed", int)
    learned = image_index.train_images(index)
    ids = {i.id for i in learned}
    annotations = [a for a in storage.read_json(instances)["annotations"] if a["image_id"] in ids]
    if not annotations:
        raise InputError(f"{instances} has no object in a training image; look at data/masks.json and at mine in params.yaml")
    with Checkpoint("train_detector", [p, k, seed], [index, instances, folder, p.init]) as checkpoint:
        model, values = detector.train(p, k, folder, learned, annotations, seed, checkpoint)
        detector.save(weights, model, p, k)
        training.write_history(history, values)


if __name__ == "__main__":
    run(main)
