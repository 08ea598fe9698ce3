"""The detector's instances on every image."""

from unseg import params
from unseg.console import Meter, run
from unseg.detection import detector
from unseg.detection.settings import Detect
from unseg.io import records


def main(index: str, folder: str, weights: str, out: str) -> None:
    trained = detector.load(weights, params.group("detect", Detect))
    every = records.read_images(index)
    found = []
    with Meter(len(every), "detect") as meter:
        for results in detector.detect(trained, folder, every):
            found += results
            meter.step()
    records.write_json(out, sorted(found, key=lambda r: r["image_id"]))  # stable: the surest of an image stays first
    print(f"{len(found)} detections in {len(every)} images")


if __name__ == "__main__":
    run(main)
