"""One object mask an image or more, from the affinity graph of ViT keys."""

import json
import math
from collections.abc import Iterator
from itertools import count

from unseg.core import alarms, image_index, params, rle, storage
from unseg.core.console import InputError, run
from unseg.data import photos
from unseg.engine.checkpoint import Checkpoint, ResultStore
from unseg.mining import affinity, miner
from unseg.models import vit


def main(index: str, folder: str, weights: str, out: str) -> None:
    p, backbone = params.group("mine", affinity.Mining), params.group("backbone", vit.Backbone)
    alarm = params.group("alarms.masks", alarms.MaskAlarm)
    if backbone.patch > p.resize:
        raise InputError(f"params.yaml: mine.resize is {p.resize}; it must be at least backbone.patch, {backbone.patch}")
    every, model = image_index.read_images(index), vit.load(backbone)
    shares: list[float] = []  # of its image that each first mask covers
    with Checkpoint("mine", [p, backbone], [index, folder, weights]) as checkpoint, ResultStore(checkpoint) as results:
        mined = miner.objects(
            model,
            every,
            lambda i: i.size,
            lambda i: photos.read(folder, i),
            p,
            backbone.patch,
            lambda batches: results.left(batches, lambda i: i.id),
        )
        for image, masks in mined:
            found = [rle.coco_annotation(image.id, image.id, rle.CLASS_AGNOSTIC, rle.encode(mask)) for mask in masks]
            results.put(image.id, storage.json_line(found).encode())

        def annotations() -> Iterator[str]:
            more = count(1 + max((i.id for i in every), default=0))  # ids of further masks come after those of all images
            for text in results.of(i.id for i in every):
                for n, a in enumerate(json.loads(text)):
                    a["id"] = next(more) if n else a["id"]
                    if a["area"]:  # a sliver can fall between the pixels of a photograph that is smaller than the grid
                        shares.extend([] if n else [a["area"] / math.prod(a["segmentation"]["size"])])
                        yield storage.json_line(a)

        if results.complete():
            categories = [{"id": rle.CLASS_AGNOSTIC, "name": "object"}]
            known = [vars(i) for i in every]
            storage.write_json(out, {"images": known, "annotations": storage.JsonLines(annotations()), "categories": categories})
    if results.first:
        alarm.look(out, shares, len(every))


if __name__ == "__main__":
    run(main)
