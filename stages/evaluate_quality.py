"""Quality without labels: of the mined masks, of the clusters, and the agreement of the steps."""

import numpy as np

from unseg.clustering import algorithms
from unseg.core import alarms, params
from unseg.core.console import run
from unseg.core.image_index import eval_images, evenly_spaced, read_images, train_images
from unseg.core.instances import Instance, read
from unseg.core.label_maps import LabelMaps
from unseg.core.storage import write_json
from unseg.evaluation import metrics
from unseg.evaluation.label_free import quality, stability
from unseg.mining import affinity
from unseg.models import vit


def main(
    index: str,
    images: str,
    weights: str,
    masks: str,
    tokens: str,
    instances: str,
    labels: str,
    mask_predictions: str,
    detector_predictions: str,
    final_predictions: str,
    results: str,
    details: str,
) -> None:
    q, alarm = params.group("quality", quality.Quality), params.group("alarms.segmentation", alarms.SegmentationAlarm)
    mining, backbone = params.group("mine", affinity.Mining), params.group("backbone", vit.Backbone)
    p, seed = params.group("cluster", algorithms.Clustering), params.value("seed", int)
    records, train = read_images(index), train_images(index)

    mined = read(masks, Instance, records)
    mask_of = {x.image_id: x.mask for x in reversed(mined)}  # the first of an image
    sample = evenly_spaced([i for i in records if i.id in mask_of], q.images)
    pairs = [(image, mask_of[image.id].decode()) for image in sample]
    flip, crop = stability.measure_mining(vit.load(backbone), images, pairs, mining)
    numbers = quality.measure_masks(records, mined) | {"mask_flip": flip, "mask_crop": crop}

    stored = np.load(tokens)
    cluster_of = {x.id: x.category_id for x in read(instances, Instance, records, train, clusters=p.k)}
    kept = np.array([i in cluster_of for i in stored["ids"].tolist()], bool)
    clusters = np.array([cluster_of[i] for i in stored["ids"][kept].tolist()], int)
    numbers |= quality.measure_clusters(stored["tokens"][kept], clusters, p, q, seed)

    final = LabelMaps(final_predictions)
    steps = {"masks": LabelMaps(mask_predictions), "detector": LabelMaps(detector_predictions), "final": final}
    numbers |= quality.measure_pseudo_labels(train, LabelMaps(labels), final)
    numbers |= quality.measure_steps(eval_images(index), steps, p.k)
    scores = {name: metrics.rounded(x) for name, x in numbers.items()}
    about = {"images": len(records), "eval_images": len(eval_images(index)), "mined_again": len(sample), "clusters": p.k}
    write_json(details, scores | about | {"seeds": [seed]})
    write_json(results, metrics.headline(scores, "cluster_stability", "mask_flip", "mask_missing"))
    alarm.check(final_predictions, int(numbers["clusters_used"]), p.k, len(eval_images(index)))


if __name__ == "__main__":
    run(main)
