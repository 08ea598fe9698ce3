"""The detector's instances on every image."""

from unseg import params
from unseg.console import Meter, run
from unseg.detection import detector
from unseg.io import records
from unseg.scratch import Results, Scratch


def main(index: str, folder: str, weights: str, out: str) -> None:
    q = params.group("detect", detector.Detect)
    model, precision = detector.load(weights, q)
    every = records.read_images(index)
    with Scratch("detect", [q], [index, folder, weights]) as scratch, Results(scratch) as results:

        def left(batches: list[list[records.Image]]) -> list[list[records.Image]]:
            return results.left(batches, lambda i: i.id)

        with Meter(len(every), "detect", results.before) as meter:
            for image, found in detector.detect(model, precision, folder, every, q.pixels, left):
                results.put(image.id, "\n".join(map(records.line, found)).encode())  # the surest first
                meter.step()
        if results.complete():
            texts = (text for lines in results.of(i.id for i in every) for text in lines.decode().splitlines())
            records.write_json(out, records.Lines(texts))


if __name__ == "__main__":
    run(main)
