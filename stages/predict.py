"""Predict label maps of the eval images with a segmenter: 0 background, 1..K clusters."""

from collections.abc import Iterator

import torch

from unseg.core import image_index, params, storage
from unseg.core.console import run
from unseg.core.image_index import ImageRecord
from unseg.engine.batching import Batches
from unseg.engine.map_batches import map_batches
from unseg.segmentation import segmenter


def main(index: str, images: str, weights: str, predictions: str) -> None:
    q, net = params.group("predict", segmenter.Predict), segmenter.load(weights)
    eval_images = image_index.eval_images(index)

    def predict(batches: Batches[ImageRecord]) -> Iterator[tuple[ImageRecord, bytes]]:
        for image, p in segmenter.predict(net, batches):
            yield image, storage.encode_png(p.argmax(0).to(torch.uint8).cpu().numpy())

    batches = segmenter.load_batches(net, images, eval_images, q)
    with map_batches("predict", [q], [index, images, weights], batches, predict, lambda i: i.id) as results:
        if results:
            names = (f"{i.file_name}.png" for i in eval_images)
            storage.write_zip(predictions, zip(names, results(i.id for i in eval_images), strict=True))


if __name__ == "__main__":
    run(main)
