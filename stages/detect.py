"""The detector's instances on every image."""

from unseg.core import image_index, params, storage
from unseg.core.console import Meter, run
from unseg.detection import detector
from unseg.detection.settings import Detect
from unseg.engine.checkpoint import Checkpoint, ResultStore


def main(index: str, folder: str, weights: str, out: str) -> None:
    trained = detector.load(weights, params.group("detect", Detect))
    every = image_index.read_images(index)
    with Checkpoint("detect", [trained.q], [index, folder, weights]) as checkpoint, ResultStore(checkpoint) as results:

        def left(batches: list[list[image_index.ImageRecord]]) -> list[list[image_index.ImageRecord]]:
            return results.left(batches, lambda i: i.id)

        with Meter(len(every), "detect", results.before) as meter:
            for image, found in detector.detect(trained, folder, every, left):
                results.put(image.id, "\n".join(map(storage.json_line, found)).encode())  # the surest first
                meter.step()
        if results.complete():
            texts = (text for lines in results.of(i.id for i in every) for text in lines.decode().splitlines())
            storage.write_json(out, storage.JsonLines(texts))


if __name__ == "__main__":
    run(main)
