"""Select the detector's training instances of the next round from its confident detections."""

from unseg.core import params
from unseg.core.console import run
from unseg.core.image_index import read_images
from unseg.core.instances import Detection, Instance, instance, read_by_image
from unseg.core.storage import read_json, write_json
from unseg.detection import self_training


def main(instances: str, detections: str, output: str) -> None:
    p, images = params.group("self_train", self_training.SelfTraining), read_images(instances)
    by_image = zip(read_by_image(detections, Detection, images), read_by_image(instances, Instance, images), strict=True)
    objects = [x for (_, new), (_, previous) in by_image for x in self_training.self_train(new, previous, p)]
    annotations = [instance(n, x.image_id, x.category_id, x.mask).to_coco() for n, x in enumerate(objects, 1)]
    write_json(output, {**read_json(instances), "annotations": annotations})
    print(f"{len(objects)} instances, {sum(isinstance(x, Detection) for x in objects)} of them detections")


if __name__ == "__main__":
    run(main)
