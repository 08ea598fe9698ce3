"""One object mask an image, from the affinity graph of ViT keys."""

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
    mined = miner.masks(vit.load(backbone), every, lambda i: i.size, lambda i: photos.read(folder, i), p, backbone.patch)
    found = {image.id: records.encode(mask) for image, mask in mined}
    annotations = [records.annotation(i.id, i.id, records.NO_CATEGORY, found[i.id]) for i in every]
    categories = [{"id": records.NO_CATEGORY, "name": "object"}]
    # A sliver of a mask can fall between the pixels of a photograph that is smaller than the grid.
    annotations = [a for a in annotations if a["area"]]
    records.write_json(out, {"images": [vars(i) for i in every], "annotations": annotations, "categories": categories})
    alarm.look(out, [a["area"] / math.prod(a["segmentation"]["size"]) for a in annotations], len(every))


if __name__ == "__main__":
    run(main)
