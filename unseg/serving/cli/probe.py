"""`unseg probe`: from a handful of labelled photographs to classes, by vote or by a linear head."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from unseg.clustering import naming
from unseg.core.console import InputError, track
from unseg.core.label_maps import IGNORE_LABEL
from unseg.segmentation import segmenter
from unseg.serving import few_labels
from unseg.serving.api import Predictor, opened


def probe(model: Predictor, folder: Path, masks: Path, out: Path, names: str | None, vote: bool) -> str:
    """Write a clusters.yaml (vote) or a segmenter (head) over what may be in `out`; returns what was done, in words.

    Raises:
        InputError: labels that cannot be used.
    """
    labelled = []
    for photo, mask in few_labels.pairs(folder, masks):
        image = opened(photo)
        labelled.append((image, few_labels.read_mask(mask, (image.height, image.width))))
    known = [m[m != IGNORE_LABEL] for _, m in labelled]
    count = 1 + max((int(m.max()) for m in known if m.size), default=-1)
    if count < 1:
        raise InputError(f"{masks}: no pixel has a label; 255 is unknown, 0 background, 1.. classes")
    classes = few_labels.class_names(names, masks, count)
    if vote:
        bare = replace(model, clusters=naming.ClusterNames(model.net.labels - 1), found_by=None)
        maps = ((bare.predict(image).labels, mask) for image, mask in track(labelled, "vote"))
        table = few_labels.votes(maps, model.net.labels - 1, len(classes))
        said = few_labels.named(table, classes)
        naming.write(out, replace(said, clustering=model.clusters.clustering))
        found = {e.name for e in said.entries.values() if e.name}
        return f"{len(labelled)} photographs: {len(said.entries)} of {said.count} clusters have a class, {len(found)} classes"
    net, seen, device = model.net, model.seen, model.device
    every = enumerate(track(labelled, "features"))
    parts = [few_labels.cells(net, image, mask, seen, device, i) for i, (image, mask) in every]
    features, labels = (np.concatenate(x) for x in zip(*parts, strict=True))
    net = few_labels.head(net, features, labels, classes)
    segmenter.write_segmenter(out, net.model, net.shape, net.size, net.precision, net.names, seen)
    return f"{len(labelled)} photographs, {len(labels)} labelled cells: a segmenter of {', '.join(classes)}"
