"""Make new label maps of the train images with a segmenter: averaged over views, refined by a CRF, the confident part kept."""

from collections.abc import Iterator
from functools import partial

import numpy as np

from unseg.core import image_index, params, storage
from unseg.core.console import run, track
from unseg.core.image_index import ImageRecord
from unseg.data import photos
from unseg.engine import environment
from unseg.engine.batching import Batches
from unseg.engine.map_batches import map_batches
from unseg.segmentation import crf, segmenter, teacher


def main(index: str, images: str, weights: str, labels: str, to: str) -> None:
    q, c, p = params.group("predict", segmenter.Predict), params.group("crf", crf.Crf), params.group("relabel", teacher.Relabel)
    p, net = teacher.of_round(p, params.value("refine", list), to), segmenter.load(weights)
    train_images = image_index.train_images(index)

    def relabel(batches: Batches[ImageRecord]) -> Iterator[tuple[ImageRecord, bytes]]:
        predictions = segmenter.predict(net, batches, partial(teacher.average, flip=p.flip, scales=p.scales))
        device = environment.device()
        for image, result in teacher.label(predictions, read, p, c, len(train_images), device):
            yield image, storage.encode_png(result)

    def read(image: ImageRecord) -> np.ndarray:
        return np.asarray(photos.read(images, image))

    batches = segmenter.load_batches(net, images, train_images, q)
    with map_batches("relabel", [q, c, p], [index, images, weights], batches, relabel, lambda i: i.id) as results:
        if results:
            ids = [i.id for i in train_images]
            maps = results(ids)
            if p.threshold is not None:
                decode = storage.decode_png
                thresholds = teacher.class_thresholds(track(map(decode, results(ids)), "thresholds", len(ids)), p.threshold)
                maps = (storage.encode_png(teacher.keep_confident(decode(content), thresholds)) for content in results(ids))
            storage.write_zip(labels, zip((f"{i.file_name}.png" for i in train_images), maps, strict=True))


if __name__ == "__main__":
    run(main)
