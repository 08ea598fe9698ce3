"""Label maps with clusters merged or left out, as clusters.yaml says: what the segmenter learns from, where params.yaml asks."""

from collections.abc import Iterator

import numpy as np

from unseg.clustering import naming
from unseg.core import params, records
from unseg.core.console import run, track


def main(index: str, labels: str, said: str, out: str) -> None:
    table = naming.read(said, params.value("cluster.k", int)).becomes()
    learned, maps = records.to_learn(index), records.Labels(labels)

    def regrouped() -> Iterator[tuple[str, np.ndarray]]:
        for image in track(learned, "regroup", len(learned)):
            yield image.file_name, table[maps[image]]

    records.write_labels(out, regrouped())


if __name__ == "__main__":
    run(main)
