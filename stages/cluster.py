"""Every mask gets a label: the cluster of its CLS token. Training images' masks are clustered; the others assigned."""

import numpy as np

from unseg.clustering import algorithms
from unseg.core import alarms, params, storage
from unseg.core.console import InputError, run


def main(tokens: str, masks: str, out: str) -> None:
    p, seed = params.group("cluster", algorithms.Clustering), params.value("seed", int)
    alarm = params.group("alarms.clusters", alarms.ClusterAlarm)
    stored, coco = np.load(tokens), storage.read_json(masks)
    learned = {i["id"] for i in coco["images"] if i["split"] != "val"}
    order = {int(a["id"]): a["image_id"] in learned for a in coco["annotations"]}
    chosen = np.array([order[int(i)] for i in stored["ids"]], bool)
    every = stored["tokens"]  # [M, D], read once: an .npz reads at each look
    fit = every[chosen]
    if p.support is not None:
        fit = np.concatenate([fit, np.load(p.support)["tokens"]])
    try:
        labels = algorithms.cluster(every, fit, p, seed)
    except ValueError as error:
        raise InputError(f"{tokens}: {error}") from None
    label_of = dict(zip(stored["ids"].tolist(), labels.tolist(), strict=True))
    annotations = [{**a, "category_id": label_of[a["id"]]} for a in coco["annotations"]]
    categories = [{"id": k, "name": f"cluster {k}"} for k in range(p.k)]
    storage.write_json(out, {"images": coco["images"], "annotations": annotations, "categories": categories})
    counts = np.bincount(labels[chosen], minlength=p.k)
    print("objects a cluster:", *counts.tolist())
    alarm.look(out, counts)


if __name__ == "__main__":
    run(main)
