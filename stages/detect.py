"""The detector's instances on every image."""

from collections.abc import Iterator

from unseg.core import image_index, params, storage
from unseg.core.console import run
from unseg.core.image_index import ImageRecord
from unseg.detection import detector
from unseg.detection.settings import Detect
from unseg.engine.batching import Batches
from unseg.engine.map_batches import map_batches


def main(index: str, folder: str, weights: str, out: str) -> None:
    trained = detector.load(weights, params.group("detect", Detect))
    images = image_index.read_images(index)

    def detect(batches: Batches[ImageRecord]) -> Iterator[tuple[ImageRecord, bytes]]:
        for image, detections in detector.detect(trained, batches):
            yield image, "\n".join(map(storage.json_line, detections)).encode()

    batches = detector.load_batches(trained, folder, images)
    with map_batches("detect", [trained.q], [index, folder, weights], batches, detect, lambda i: i.id) as results:
        if results:
            texts = (text for lines in results(i.id for i in images) for text in lines.decode().splitlines())
            storage.write_json(out, storage.JsonLines(texts))


if __name__ == "__main__":
    run(main)
