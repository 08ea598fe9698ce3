"""`unseg probe`: turns clusters into classes with a few labelled photographs, by a linear head or by vote."""

import argparse
from dataclasses import replace

import numpy as np

from unseg.clustering import naming
from unseg.core.console import InputError, track
from unseg.core.label_maps import IGNORE_LABEL
from unseg.segmentation import segmenter
from unseg.serving import few_labels
from unseg.serving.api import load, open_photo
from unseg.serving.cli.parser import check_output


def run(options: argparse.Namespace) -> None:
    """Write a segmenter or, by vote, a clusters.yaml. Raises InputError for labels that cannot be used."""
    check_output(options.out, options.force)
    model = load(options.model or options.run.segmenter, device=options.device, input_size=options.size)
    labelled = []
    for photo, mask in few_labels.pairs(options.photos, options.masks):
        image = open_photo(photo)
        labelled.append((image, few_labels.read_mask(mask, (image.height, image.width))))
    values = np.concatenate([mask[mask != IGNORE_LABEL] for _, mask in labelled])
    if not len(values):
        raise InputError(f"{options.masks}: no pixel has a label; 255 is unknown, 0 background, 1.. classes")
    classes = few_labels.class_names(options.classes, options.masks, int(values.max()) + 1)
    if options.vote:
        file = options.run / "data/instances.json"
        clustering = naming.fingerprint(file) if not options.model and file.exists() else None
        model = replace(model, clusters=naming.ClusterNames(model.net.labels - 1))
        maps = ((model.predict(image).labels, mask) for image, mask in track(labelled, "vote"))
        voted = few_labels.name_by_votes(few_labels.votes(maps, model.net.labels - 1, len(classes)), classes)
        naming.write(options.out, replace(voted, clustering=clustering))
        named = sum(e.name is not None for e in voted.entries.values())
        summary = f"{len(voted.entries)} of {voted.count} clusters have a class, {named} classes"
    else:
        cells = [
            few_labels.cell_features(model.net, image, mask, model.input_size, model.device, seed)
            for seed, (image, mask) in enumerate(track(labelled, "features"))
        ]
        features, labels = (np.concatenate(x) for x in zip(*cells, strict=True))
        net = few_labels.fit_head(model.net, features, labels, classes)
        segmenter.write_segmenter(options.out, net.model, net.shape, net.size, net.precision, net.names, model.input_size)
        summary = f"{len(labels)} labelled cells: a segmenter of {', '.join(classes)}"
    print(f"{len(labelled)} photographs, {summary}, in {options.out}")
