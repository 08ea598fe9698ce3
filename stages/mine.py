"""One object mask an image or more, from the affinity graph of ViT keys."""

import math

from unseg import alarms, params
from unseg.backbones import vit
from unseg.console import InputError, run
from unseg.io import photos, records
from unseg.mining import affinity, miner


def main(index: str, folder: str, weights: str, out: str) -> None:
    p, backbone = params.group("mine", affinity.Mining), params.group("backbone", vit.Backbone)
    alarm = params.group("alarms.masks", alarms.Masks)
    if backbone.patch > p.resize:
        raise InputError(f"params.yaml: mine.resize is {p.resize}; it must be at least backbone.patch, {backbone.patch}")
    every = records.read_images(index)
    mined = miner.objects(vit.load(backbone), every, lambda i: i.size, lambda i: photos.read(folder, i), p, backbone.patch)
    found = {image.id: [records.encode(mask) for mask in masks] for image, masks in mined}
    annotations = [records.annotation(i.id, i.id, records.NO_CATEGORY, found[i.id][0]) for i in every]
    more = ((i.id, rle) for i in every for rle in found[i.id][1:])  # their ids come after those of all images
    after = 1 + max((i.id for i in every), default=0)
    annotations += [records.annotation(n, i, records.NO_CATEGORY, rle) for n, (i, rle) in enumerate(more, after)]
    categories = [{"id": records.NO_CATEGORY, "name": "object"}]
    # A sliver of a mask can fall between the pixels of a photograph that is smaller than the grid.
    annotations = [a for a in annotations if a["area"]]
    records.write_json(out, {"images": [vars(i) for i in every], "annotations": annotations, "categories": categories})
    firsts = [a for a in annotations if a["id"] < after]
    alarm.look(out, [a["area"] / math.prod(a["segmentation"]["size"]) for a in firsts], len(every))


if __name__ == "__main__":
    run(main)
