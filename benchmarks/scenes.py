"""Purity of clusters of the demo's true objects by colour alone, and by size and aspect ratio alone.

    python benchmarks/scenes.py [--seeds 0 1 2] [--scenes 800]

K-means (K = cluster.k) clusters the mean colours of the objects, and the logarithms of their areas and aspect ratios. Purity is
the fraction of objects in the most frequent class of their cluster.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import yaml
from sklearn.cluster import KMeans

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from unseg.data import demo


def cues(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean colours [M, 3], log area and log aspect ratio [M, 2] of unit variance, and classes [M] of M true objects."""
    colours, shapes, classes = [], [], []
    for number in range(count):
        image, objects = demo.scene(np.random.default_rng((seed, False, number)), size)
        for label, mask in objects:
            y, x = np.nonzero(mask)
            colours.append(image[mask].mean(0))
            shapes.append((np.log(len(y)), np.log((np.ptp(x) + 1) / (np.ptp(y) + 1))))
            classes.append(label)
    shape: np.ndarray = np.array(shapes)
    return np.array(colours), shape / shape.std(0), np.array(classes)


def purity(labels: np.ndarray, classes: np.ndarray) -> float:
    """Fraction of objects in the most frequent class of their cluster; both [M]."""
    return float(sum(np.bincount(classes[labels == k]).max() for k in np.unique(labels)) / len(classes))


def main(words: list[str] | None = None) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scenes", type=int, default=800)
    options = parser.parse_args(words)
    rows = []
    for seed in options.seeds:
        *features, classes = cues(options.scenes, params["demo"]["size"], seed)
        clusters = (KMeans(params["cluster"]["k"], n_init=10, random_state=0).fit_predict(x) for x in features)
        rows.append([purity(labels, classes) for labels in clusters])
        print(f"seed {seed}  {len(classes)} objects  colour {rows[-1][0]:.3f}  shape {rows[-1][1]:.3f}", flush=True)
    print("mean    colour {:.3f}  shape {:.3f}".format(*np.mean(rows, 0)))


if __name__ == "__main__":
    main()
