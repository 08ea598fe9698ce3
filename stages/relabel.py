"""Label maps of the training images again, from a segmenter and a CRF."""

from collections.abc import Iterator

import numpy as np

from unseg.core import image_index, params, storage
from unseg.core.console import run, track
from unseg.data import photos
from unseg.engine import environment
from unseg.engine.checkpoint import Checkpoint, ResultStore
from unseg.segmentation import crf, segmenter


def main(index: str, folder: str, weights: str, out: str) -> None:
    q, p, net = params.group("predict", segmenter.Predict), params.group("crf", crf.Crf), segmenter.load(weights)
    learned = image_index.train_images(index)
    ids = {i.file_name: i.id for i in learned}
    with Checkpoint("relabel", [q, p], [index, folder, weights]) as checkpoint, ResultStore(checkpoint) as results:

        def answered() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
            maps = segmenter.every_probability(net, folder, learned, q, lambda b: results.left(b, lambda i: i.id))
            for image, probability in track(maps, "relabel", len(learned), results.before):
                yield image.file_name, probability.float().cpu().numpy(), np.asarray(photos.read(folder, image))

        for name, refined in crf.refine_each(answered(), p, len(learned), environment.device()):
            results.put(ids[name], storage.encode_png(refined))
        if results.complete():
            storage.write_zip(out, zip((f"{i.file_name}.png" for i in learned), results.of(ids.values()), strict=True))


if __name__ == "__main__":
    run(main)
