"""Label maps with clusters merged or left out, as clusters.yaml says: what the segmenter learns from, where params.yaml asks."""

from collections.abc import Iterator

import numpy as np

from unseg import params
from unseg.console import run, track
from unseg.io import records
from unseg.segmentation import clusters


def main(index: str, labels: str, said: str, out: str) -> None:
    table = clusters.read(said, params.value("cluster.k", int)).becomes()
    learned, maps = records.to_learn(index), records.Labels(labels)

    def regrouped() -> Iterator[tuple[str, np.ndarray]]:
        for image in track(learned, "regroup", len(learned)):
            yield image.file_name, table[maps[image]]

    records.write_labels(out, regrouped())


if __name__ == "__main__":
    run(main)
