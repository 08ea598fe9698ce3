"""One object mask or more for each image, from the affinity graph of ViT keys."""

import json
import math
from collections.abc import Iterator
from itertools import count

from unseg.core import alarms, image_index, params, storage
from unseg.core.console import InputError, run
from unseg.core.image_index import ImageRecord
from unseg.core.rle import CLASS_AGNOSTIC, coco_annotation, encode
from unseg.data import photos
from unseg.engine.batching import Batches
from unseg.engine.map_batches import map_batches
from unseg.mining import affinity, miner
from unseg.models import vit


def main(index: str, folder: str, weights: str, out: str) -> None:
    p, backbone = params.group("mine", affinity.Mining), params.group("backbone", vit.Backbone)
    alarm = params.group("alarms.masks", alarms.MaskAlarm)
    if backbone.patch > p.resize:
        raise InputError(f"params.yaml: mine.resize is {p.resize}; it must be at least backbone.patch, {backbone.patch}")
    images, model = image_index.read_images(index), vit.load(backbone)
    areas: list[float] = []  # of each image's first mask, as a fraction of the image

    def mine(batches: Batches[ImageRecord]) -> Iterator[tuple[ImageRecord, bytes]]:
        for image, masks in miner.objects(model, batches, lambda i: i.size, p, backbone.patch):
            annotations = [coco_annotation(image.id, image.id, CLASS_AGNOSTIC, encode(mask)) for mask in masks]
            yield image, storage.json_line(annotations).encode()

    def annotations(results: Iterator[bytes]) -> Iterator[str]:
        further = count(1 + max((i.id for i in images), default=0))  # ids of further masks come after those of all images
        for text in results:
            for n, a in enumerate(json.loads(text)):
                a["id"] = next(further) if n else a["id"]
                if a["area"]:  # a sliver can fall between the pixels of a photograph that is smaller than the grid
                    areas.extend([] if n else [a["area"] / math.prod(a["segmentation"]["size"])])
                    yield storage.json_line(a)

    batches = miner.load_batches(images, lambda i: i.size, lambda i: photos.read(folder, i), p, backbone.patch)
    with map_batches("mine", [p, backbone], [index, folder, weights], batches, mine, lambda i: i.id) as results:
        if results:
            content = {
                "images": [vars(i) for i in images],
                "annotations": storage.JsonLines(annotations(results(i.id for i in images))),
                "categories": [{"id": CLASS_AGNOSTIC, "name": "object"}],
            }
            storage.write_json(out, content)
    if results:
        alarm.look(out, areas, len(images))


if __name__ == "__main__":
    run(main)
