"""Label maps with clusters merged or left out, as clusters.yaml says: what the segmenter learns from, where params.yaml asks."""

from collections.abc import Iterator

import numpy as np

from unseg.clustering import naming
from unseg.core import image_index, label_maps, params
from unseg.core.console import run, track


def main(index: str, labels: str, said: str, out: str) -> None:
    table = naming.read(said, params.value("cluster.k", int)).label_lut()
    learned, maps = image_index.train_images(index), label_maps.LabelMaps(labels)

    def regrouped() -> Iterator[tuple[str, np.ndarray]]:
        for image in track(learned, "regroup", len(learned)):
            yield image.file_name, table[maps[image]]

    label_maps.write_label_maps(out, regrouped())


if __name__ == "__main__":
    run(main)
