"""Label maps of the training photographs, with those that people corrected; only if params.yaml lists `corrections`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from unseg.clustering import naming
from unseg.core import image_index, label_maps, params, rounds
from unseg.core.console import run, track


def main(index: str, instances: str, labels: str, corrected: str, clusters: str, output: str) -> None:
    mark = naming.fingerprint(instances)
    lut = naming.read(clusters, params.value("cluster.k", int), mark).label_lut()
    images, maps = image_index.train_images(index), label_maps.LabelMaps(labels)
    human = rounds.read_corrections(Path(corrected), image_index.read_images(index), mark)

    def merged() -> Iterator[tuple[str, np.ndarray]]:
        for image in track(images, "correct", len(images)):
            yield image.file_name, lut[(human if image in human else maps)[image]]

    label_maps.write_label_maps(output, merged())
    print(f"{sum(image in human for image in images)} of {len(images)} training photographs have corrected labels")


if __name__ == "__main__":
    run(main)
