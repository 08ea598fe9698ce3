"""Label maps of the training images again, from a segmenter and a CRF."""

from collections.abc import Iterator

import numpy as np

from unseg import params
from unseg.console import run, track
from unseg.io import photos, records
from unseg.segmentation import labels, segmenter


def main(index: str, folder: str, weights: str, out: str) -> None:
    q, crf, net = params.group("predict", segmenter.Predict), params.group("crf", labels.Crf), segmenter.load(weights)
    learned = records.to_learn(index)

    def answered() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        for image, p in track(segmenter.every_probability(net, folder, learned, q), "relabel", len(learned)):
            yield image.file_name, p.float().cpu().numpy(), np.asarray(photos.read(folder, image))

    records.write_labels(out, labels.refine_each(answered(), crf, len(learned)))


if __name__ == "__main__":
    run(main)
