"""Index the photographs that can be read; list the others with the reason; keep the ground truth apart."""

from collections import Counter
from dataclasses import asdict

from unseg.core import optional, params
from unseg.core.console import InputError, run
from unseg.core.label_maps import LabelMaps
from unseg.core.storage import write_json, write_zip
from unseg.data import readers, truth
from unseg.data.examination import examine
from unseg.data.readers import Data
from unseg.engine import environment

MODELS = ("croc", "mine", "embed", "detector", "segmenter", "backbone_linear", "backbone_kmeans", "backbone_video")
PRECISION_KEYS = [f"{group}.precision" for group in MODELS]


def main(images: str, rejected: str, truth_zip: str) -> None:
    data = params.group("data", Data)
    optional.check_detector_backend(params.value("detector.backend", str))  # or the run would end after hours of mining
    optional.check_crf_method(params.value("crf.method", str))
    environment.check()
    precisions = {key: params.value(key, str) for key in PRECISION_KEYS}
    if "bf16" in precisions.values():  # the only reason to import torch here
        from unseg.engine.precision import check_not_emulated

        check_not_emulated(precisions, environment.device())
    found = readers.find_dataset(data)
    index, bad = examine(data, found)
    write_json(rejected, {"rejected": [asdict(r) for r in bad]})
    splits = Counter(i.split for i in index)
    print(f"{data.images}: {len(index)} images ({readers.count_photos(splits)})" if index else f"{data.images}: no image")
    if bad:
        reasons = Counter(r.reason.split(":")[0] for r in bad)
        print(f"{len(bad)} rejected ({readers.count_photos(reasons)}): see {rejected}")
    if found.ignored:
        print(f"{found.ignored.total()} other files ignored ({readers.count_photos(found.ignored)})")
    for split, file in (("train", data.train or data.images), ("val", data.val)):
        if file and not splits[split] and not splits["both"]:
            raise InputError(f"data.{split}: {file}: none of its images can be used; {rejected} says why")
    write_json(images, {"images": [asdict(i) for i in index]})
    write_zip(truth_zip, truth.members(data, index))
    known = LabelMaps(truth_zip, "semantic/")
    print(f"{sum(i in known for i in index)} of them with ground truth")


if __name__ == "__main__":
    run(main)
