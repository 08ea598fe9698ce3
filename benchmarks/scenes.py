"""How far colour alone, or size and aspect ratio alone, tell the demo's classes apart.

    python benchmarks/scenes.py [--seeds 0 1 2] [--scenes 800] [--tree FOLDER] [--size PIXELS] [--clusters K]

K-means on the mean colours of the true objects, and on the logarithms of their areas and aspect ratios. Prints the purity of
the clusters: the fraction of objects that belong to the most frequent class of their cluster. To compare with another commit:

    git worktree add --detach /tmp/other COMMIT
    python benchmarks/scenes.py --tree /tmp/other --size 96
"""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import KMeans

ROOT = Path(__file__).resolve().parents[1]


def cues(scenes: Any, count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of M true objects: mean colours [M, 3], log area and log aspect ratio [M, 2] of unit variance, classes [M]."""
    colours, shapes, classes = [], [], []
    for number in range(count):
        image, objects = scenes.scene(np.random.default_rng((seed, False, number)), size)
        for label, mask in objects:
            y, x = np.nonzero(mask)
            colours.append(image[mask].mean(0))
            shapes.append((np.log(len(y)), np.log((np.ptp(x) + 1) / (np.ptp(y) + 1))))
            classes.append(label)
    shape: np.ndarray = np.array(shapes)
    return np.array(colours), shape / shape.std(0), np.array(classes)


def purity(labels: np.ndarray, classes: np.ndarray) -> float:
    """Fraction of objects that belong to the most frequent class of their cluster; both [M]."""
    return float(sum(np.bincount(classes[labels == k]).max() for k in np.unique(labels)) / len(classes))


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scenes", type=int, default=800)
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout that draws the scenes (this one)")
    parser.add_argument("--size", type=int, default=64, help="pixels a side, demo.size of that checkout (64)")
    parser.add_argument("--clusters", type=int, default=6, help="K, cluster.k of the demo (6)")
    options = parser.parse_args(words)
    sys.path.insert(0, str(options.tree))
    (file,) = options.tree.glob("unseg/*/demo.py")
    scenes = importlib.import_module(f"unseg.{file.parent.name}.demo")
    rows = []
    for seed in options.seeds:
        *values, classes = cues(scenes, options.scenes, options.size, seed)
        clusters = (KMeans(options.clusters, n_init=10, random_state=0).fit_predict(x) for x in values)
        rows.append([purity(labels, classes) for labels in clusters])
    (colour, shape), spread = np.mean(rows, 0), np.ptp(rows, 0)
    print(f"mean colour: purity {colour:.3f} (spread {spread[0]:.3f})")
    print(f"area and aspect ratio: purity {shape:.3f} (spread {spread[1]:.3f})")


if __name__ == "__main__":
    main()
