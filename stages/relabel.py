"""New label maps of the train images, from a segmenter and a CRF."""

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


def main(index: str, folder: str, weights: str, out: str) -> None:
    q, p, net = params.group("predict", segmenter.Predict), params.group("crf", crf.Crf), segmenter.load(weights)
    images = image_index.train_images(index)
    by_name = {i.file_name: i for i in images}

    def relabel(batches: Batches[ImageRecord]) -> Iterator[tuple[ImageRecord, bytes]]:
        probabilities = (
            (image.file_name, probability.float().cpu().numpy(), np.asarray(photos.read(folder, image)))
            for image, probability in segmenter.every_probability(net, batches)
        )
        for name, labels in crf.refine_each(probabilities, p, len(images), environment.device()):
            yield by_name[name], storage.encode_png(labels)

    batches = segmenter.load_batches(net, folder, images, q)
    with map_batches("relabel", [q, p], [index, folder, weights], batches, relabel, lambda i: i.id) as results:
        if results:
            names = (f"{i.file_name}.png" for i in images)
            storage.write_zip(out, zip(names, results(i.id for i in images), strict=True))


if __name__ == "__main__":
    run(main)
