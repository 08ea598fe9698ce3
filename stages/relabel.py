"""Make new label maps of the train images with a segmenter and a CRF."""

from collections.abc import Iterator

import numpy as np

from unseg.core import image_index, params, storage
from unseg.core.console import run
from unseg.core.image_index import ImageRecord
from unseg.data import photos
from unseg.engine import environment
from unseg.engine.batching import Batches
from unseg.engine.map_batches import map_batches
from unseg.segmentation import crf, segmenter


def main(index: str, images: str, weights: str, labels: str) -> None:
    q, p, net = params.group("predict", segmenter.Predict), params.group("crf", crf.Crf), segmenter.load(weights)
    train_images = image_index.train_images(index)
    by_name = {i.file_name: i for i in train_images}

    def relabel(batches: Batches[ImageRecord]) -> Iterator[tuple[ImageRecord, bytes]]:
        items = (
            (image.file_name, probabilities.float().cpu().numpy(), np.asarray(photos.read(images, image)))
            for image, probabilities in segmenter.predict(net, batches)
        )
        for name, refined in crf.refine_all(items, p, len(train_images), environment.device()):
            yield by_name[name], storage.encode_png(refined)

    batches = segmenter.load_batches(net, images, train_images, q)
    with map_batches("relabel", [q, p], [index, images, weights], batches, relabel, lambda i: i.id) as results:
        if results:
            names = (f"{i.file_name}.png" for i in train_images)
            storage.write_zip(labels, zip(names, results(i.id for i in train_images), strict=True))


if __name__ == "__main__":
    run(main)
