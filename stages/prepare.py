"""Index the readable photographs; list the others with the reason; write the ground truth to a file that no model reads."""

from collections import Counter
from dataclasses import asdict

from unseg.core import fetched, optional, params
from unseg.core.console import InputError, run
from unseg.core.label_maps import LabelMaps
from unseg.core.storage import write_json, write_zip
from unseg.data import readers
from unseg.data import truth as ground_truth
from unseg.data.examination import examine
from unseg.data.readers import Data, format_counts
from unseg.engine import environment

MODELS = ("croc", "mine", "foreground", "embed", "detector", "segmenter")
BACKBONES = ("backbone_linear", "backbone_kmeans", "backbone_video")
PRECISION_KEYS = [f"{group}.precision" for group in MODELS + BACKBONES]
WEIGHT_KEYS = ("backbone.weights", "embedder.weights", "detector.init", "segmenter.init", "croc.init")


def main(index: str, rejected: str, truth: str) -> None:
    data = params.group("data", Data)
    optional.check_detector_backend(params.value("detector.backend", str))  # now, not after hours of mining
    optional.check_crf_method(params.value("crf.method", str))
    fetched.check_listed({key: params.value(key, str) for key in WEIGHT_KEYS}, params.value("fetch", list))
    environment.check()
    precisions = {key: params.value(key, str) for key in PRECISION_KEYS}
    if "bf16" in precisions.values():  # only this needs torch
        from unseg.engine.precision import check_not_emulated

        check_not_emulated(precisions, environment.device())
    dataset = readers.find_dataset(data)
    records, rejections = examine(data, dataset)
    write_json(rejected, {"rejected": [asdict(r) for r in rejections]})
    splits = Counter(i.split for i in records)
    print(f"{data.images}: {len(records)} images ({format_counts(splits)})" if records else f"{data.images}: no image")
    if rejections:
        reasons = Counter(r.reason.split(":")[0] for r in rejections)
        print(f"{len(rejections)} rejected ({format_counts(reasons)}): see {rejected}")
    if dataset.ignored:
        print(f"{dataset.ignored.total()} other files ignored ({format_counts(dataset.ignored)})")
    for split, file in (("train", data.train or data.images), ("val", data.val)):
        if file and not splits[split] and not splits["both"]:
            raise InputError(f"data.{split}: {file}: none of its images can be used; {rejected} has the reasons")
    write_json(index, {"images": [asdict(i) for i in records]})
    write_zip(truth, ground_truth.members(data, records))
    labels = LabelMaps(truth, "semantic/")
    print(f"{sum(i in labels for i in records)} of them with ground truth")


if __name__ == "__main__":
    run(main)
