"""Sure detections as the instances of the next round of the detector."""

from unseg.core import params, rle, storage
from unseg.core.console import run
from unseg.detection import self_training


def main(instances: str, detections: str, out: str) -> None:
    p = params.group("adopt", self_training.SelfTraining)
    known = storage.read_json(instances)
    found, former = rle.group_by_image(storage.read_json(detections)), rle.group_by_image(known["annotations"])
    adopted = [
        (i["id"], r)
        for i in known["images"]
        for r in self_training.self_train(found.get(i["id"], []), former.get(i["id"], []), p)
    ]
    annotations = [
        rle.coco_annotation(n, image_id, r["category_id"], r["segmentation"]) for n, (image_id, r) in enumerate(adopted, 1)
    ]
    storage.write_json(out, {**known, "annotations": annotations})
    print(f"{len(annotations)} instances, {sum('score' in r for _, r in adopted)} of them detections")


if __name__ == "__main__":
    run(main)
