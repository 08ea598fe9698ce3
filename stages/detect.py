"""The detector's instances on every image."""

from unseg.core import params, records
from unseg.core.console import Meter, run
from unseg.detection import detector
from unseg.detection.settings import Detect
from unseg.engine.checkpoint import Results, Scratch


def main(index: str, folder: str, weights: str, out: str) -> None:
    trained = detector.load(weights, params.group("detect", Detect))
    every = records.read_images(index)
    with Scratch("detect", [trained.q], [index, folder, weights]) as scratch, Results(scratch) as results:

        def left(batches: list[list[records.Image]]) -> list[list[records.Image]]:
            return results.left(batches, lambda i: i.id)

        with Meter(len(every), "detect", results.before) as meter:
            for image, found in detector.detect(trained, folder, every, left):
                results.put(image.id, "\n".join(map(records.line, found)).encode())  # the surest first
                meter.step()
        if results.complete():
            texts = (text for lines in results.of(i.id for i in every) for text in lines.decode().splitlines())
            records.write_json(out, records.Lines(texts))


if __name__ == "__main__":
    run(main)
