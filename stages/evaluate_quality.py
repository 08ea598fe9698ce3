"""Quality without labels: of the mined masks, of the clusters, and how well the stages agree with each other."""

import numpy as np

from unseg.clustering import algorithms
from unseg.core import alarms, params
from unseg.core.console import run
from unseg.core.image_index import eval_images, evenly_spaced, read_images, train_images
from unseg.core.label_maps import LabelMaps
from unseg.core.rle import decode
from unseg.core.storage import read_json, write_json
from unseg.evaluation import metrics
from unseg.evaluation.label_free import quality, stability
from unseg.mining import affinity
from unseg.models import vit


def main(
    index: str,
    folder: str,
    weights: str,
    masks: str,
    tokens: str,
    instances: str,
    labels: str,
    of_masks: str,
    of_detector: str,
    final: str,
    out: str,
    details: str,
) -> None:
    q, alarm = params.group("quality", quality.Quality), params.group("alarms.segmentation", alarms.SegmentationAlarm)
    mining, backbone = params.group("mine", affinity.Mining), params.group("backbone", vit.Backbone)
    p, seed = params.group("cluster", algorithms.Clustering), params.value("seed", int)
    images, judged, learned = read_images(index), eval_images(index), train_images(index)
    mined = read_json(masks)["annotations"]
    mask_of = {a["image_id"]: a["segmentation"] for a in reversed(mined)}  # of several the first
    some = [(image, decode(mask_of[image.id])) for image in evenly_spaced([i for i in images if i.id in mask_of], q.images)]
    flip, crop = stability.remined(vit.load(backbone), folder, some, mining, backbone.patch)
    numbers = quality.of_masks(images, mined) | {"mask_flip": flip, "mask_crop": crop}

    stored, known = np.load(tokens), {image.id for image in learned}
    cluster_of = {a["id"]: a["category_id"] for a in read_json(instances)["annotations"] if a["image_id"] in known}
    chosen = np.array([i in cluster_of for i in stored["ids"].tolist()], bool)
    ids = stored["ids"][chosen].tolist()
    numbers |= quality.of_clusters(stored["tokens"][chosen], np.array([cluster_of[i] for i in ids], int), p, q, seed)

    maps = {"masks": LabelMaps(of_masks), "detector": LabelMaps(of_detector), "final": LabelMaps(final)}
    numbers |= quality.of_pseudo_labels(learned, LabelMaps(labels), maps["final"]) | quality.of_steps(judged, maps, p.k)
    about = {"images": len(images), "judged": len(judged), "mined_again": len(some), "clusters": p.k, "seeds": [seed]}
    rounded = {name: metrics.rounded(x) for name, x in numbers.items()}
    write_json(details, rounded | about)
    write_json(out, metrics.headline(rounded, "cluster_stability", "mask_flip", "mask_missing"))
    alarm.look(final, int(numbers["clusters_used"]), p.k, len(judged))


if __name__ == "__main__":
    run(main)
