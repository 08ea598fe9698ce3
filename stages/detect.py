"""Run the detector on every image."""

from collections.abc import Iterator

from unseg.core import image_index, params, storage
from unseg.core.console import run
from unseg.core.image_index import ImageRecord
from unseg.detection import detector
from unseg.detection.settings import Detect
from unseg.engine.batching import Batches
from unseg.engine.map_batches import map_batches


def main(index: str, images: str, weights: str, detections: str) -> None:
    trained = detector.load(weights, params.group("detect", Detect))
    records = image_index.read_images(index)

    def detect(batches: Batches[ImageRecord]) -> Iterator[tuple[ImageRecord, bytes]]:
        for image, objects in detector.detect(trained, batches):
            yield image, "\n".join(storage.json_line(x.to_coco()) for x in objects).encode()

    batches = detector.load_batches(trained, images, records)
    with map_batches("detect", [trained.q], [index, images, weights], batches, detect, lambda i: i.id) as results:
        if results:
            texts = (text for lines in results(i.id for i in records) for text in lines.decode().splitlines())
            storage.write_json(detections, storage.JsonLines(texts))


if __name__ == "__main__":
    run(main)
