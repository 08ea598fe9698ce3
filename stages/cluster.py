"""The cluster of each mask, from its descriptor. The masks of training images are clustered, the others assigned.

With `cluster.algorithm: overcluster` the uncertain masks of training images are left out.
"""

from dataclasses import replace

import numpy as np

from unseg.clustering import algorithms
from unseg.core import alarms, image_index, instances, params, storage
from unseg.core.console import InputError, run
from unseg.core.instances import Instance


def main(tokens: str, masks: str, output: str) -> None:
    p, seed = params.group("cluster", algorithms.Clustering), params.value("seed", int)
    alarm = params.group("alarms.clusters", alarms.ClusterAlarm)
    images, stored = image_index.read_images(masks), np.load(tokens)
    objects = instances.read(masks, Instance, images)
    train_ids = {i.id for i in images if i.split != "val"}
    in_train = {x.id: x.image_id in train_ids for x in objects}
    chosen = np.array([in_train[i] for i in stored["ids"].tolist()], bool)
    all_tokens = stored["tokens"]  # [M, D], read once: an .npz reads on each access
    fit = all_tokens[chosen]
    if p.support is not None:
        fit = np.concatenate([fit, np.load(p.support)["tokens"]])
    try:
        labels, uncertain = algorithms.assign(all_tokens, fit, p, seed)
    except ValueError as error:
        raise InputError(f"{tokens}: {error}") from None
    kept = ~(uncertain & chosen)  # [M]
    label_by_id = dict(zip(stored["ids"][kept].tolist(), labels[kept].tolist(), strict=True))
    content = {
        "images": [vars(i) for i in images],
        "annotations": [replace(x, category_id=label_by_id[x.id]).to_coco() for x in objects if x.id in label_by_id],
        "categories": [{"id": k, "name": f"cluster {k}"} for k in range(p.k)],
    }
    storage.write_json(output, content)
    counts = np.bincount(labels[chosen & kept], minlength=p.k)
    print("objects a cluster:", *counts.tolist())
    if p.algorithm == "overcluster":
        print(f"uncertain, left out: {int((~kept).sum())} of {int(chosen.sum())}")
    alarm.check(output, counts)


if __name__ == "__main__":
    run(main)
