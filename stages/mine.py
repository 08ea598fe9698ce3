"""Object masks of each image, from facets of a ViT."""

import json
from collections.abc import Iterator
from itertools import count

from unseg.core import alarms, image_index, instances, masks, params, storage
from unseg.core.console import InputError, run
from unseg.core.image_index import ImageRecord
from unseg.core.instances import CLASS_AGNOSTIC
from unseg.core.masks import Mask
from unseg.data import photos
from unseg.engine.batching import Batches
from unseg.engine.map_batches import map_batches
from unseg.mining import affinity, miner
from unseg.models import vit


def main(index: str, images: str, weights: str, output: str) -> None:
    p, backbone = params.group("mine", affinity.Mining), params.group("backbone", vit.Backbone)
    alarm = params.group("alarms.masks", alarms.MaskAlarm)
    records, model = image_index.read_images(index), vit.load(backbone)
    if (patch := vit.patch_size(model)) > p.resize:
        raise InputError(f"params.yaml: mine.resize is {p.resize}; it must be at least the patch of {weights}, {patch}")
    areas: list[float] = []  # fraction of its image that each first mask covers

    def mine(batches: Batches[ImageRecord]) -> Iterator[tuple[ImageRecord, bytes]]:
        for image, arrays in miner.mine_objects(model, batches, lambda i: i.size, p):
            yield image, storage.json_line([masks.encode(array).counts for array in arrays]).encode()

    def annotations(results: Iterator[bytes]) -> Iterator[str]:
        further_ids = count(1 + max((i.id for i in records), default=0))  # the first mask of an image has the image's id
        for image, result in zip(records, results, strict=True):
            for n, counts in enumerate(json.loads(result)):
                id, mask = next(further_ids) if n else image.id, Mask(image.size, counts)
                if area := mask.area:  # 0: a narrow mask of patches can miss the pixels of a photograph smaller than the grid
                    areas.extend([] if n else [area / (image.height * image.width)])
                    yield storage.json_line(instances.instance(id, image.id, CLASS_AGNOSTIC, mask).to_coco())

    batches = miner.load_batches(model, records, lambda i: i.size, lambda i: photos.read(images, i), p)
    inputs = [index, images, weights, *([p.head] if p.method == "head" else [])]
    with map_batches("mine", [p, backbone], inputs, batches, mine, lambda i: i.id) as results:
        if results:
            content = {
                "images": [vars(i) for i in records],
                "annotations": storage.JsonLines(annotations(results(i.id for i in records))),
                "categories": [{"id": CLASS_AGNOSTIC, "name": "object"}],
            }
            storage.write_json(output, content)
    if results:
        alarm.check(output, areas, len(records))


if __name__ == "__main__":
    run(main)
