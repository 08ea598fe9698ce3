"""Label maps with clusters merged or ignored as clusters.yaml says, to train a segmenter on, if params.yaml asks for it."""

from collections.abc import Iterator

import numpy as np

from unseg.clustering import naming
from unseg.core import image_index, label_maps, params
from unseg.core.console import run, track


def main(index: str, labels: str, clusters: str, output: str) -> None:
    lut = naming.read(clusters, params.value("cluster.k", int)).label_lut()
    images, maps = image_index.train_images(index), label_maps.LabelMaps(labels)

    def regrouped() -> Iterator[tuple[str, np.ndarray]]:
        for image in track(images, "regroup", len(images)):
            yield image.file_name, lut[maps[image]]

    label_maps.write_label_maps(output, regrouped())


if __name__ == "__main__":
    run(main)
