"""`unseg predict`: segments photographs, folders of them and videos; writes label maps, overlays, COCO JSON and a table."""

import argparse
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from unseg.core import storage
from unseg.core.console import InputError, Meter
from unseg.data import examination, readers, video
from unseg.detection.settings import Detect
from unseg.report import overlay
from unseg.segmentation.crf import Crf
from unseg.serving.api import PUBLISHED_CRF, LabelFraction, Prediction, Predictor, load
from unseg.serving.cli.clusters import clusters_file
from unseg.serving.hub import repository
from unseg.serving.run import Run

T = TypeVar("T")
R = TypeVar("R")
THREADS = 3  # while the network has one photograph, others are read, drawn and written
MAX_LISTED = 20  # skipped files that are printed
PNG_LEVEL = 1  # of compression: 9 takes ten times as long for files a tenth smaller


class Source(NamedTuple):
    """A photograph or a video."""

    name: str  # in the output
    path: Path


class Record(NamedTuple):
    """What the JSON files and the table need of one picture."""

    name: str
    size: tuple[int, int]  # H, W
    annotations: list[dict[str, Any]]  # COCO
    instances: list[dict[str, Any]]  # COCO results
    fractions: list[LabelFraction]


@dataclass
class Results:
    records: list[Record] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def skip(self, name: str, reason: str) -> None:
        self.skipped.append({"file_name": name, "reason": reason})


def run(options: argparse.Namespace) -> None:
    folder: Run = options.run
    has_params = folder.params.exists()
    detector: Path | bool | None = None
    detect: Detect | None = None
    if options.instances and options.model and repository.is_named(options.model):
        detector = True
    elif options.instances:
        if not has_params:
            raise InputError(f"{folder.root} is not the folder of a run, but --instances needs its detector; name one by --run")
        detector, detect = folder.detector, folder.group("detect", Detect)
    model = load(options.model or folder.segmenter, clusters_file(options), detector, detect, options.device, options.size)
    crf = (folder.group("crf", Crf) if has_params else PUBLISHED_CRF) if options.crf else None
    results = predict(model, options.input, options.out, crf, options.force)
    print(summary(model.names, results.records))
    count, skipped = len(results.records), results.skipped
    print(f"{count} picture{'s' * (count > 1)} in {options.out}" + (f", {len(skipped)} skipped:" if skipped else ""))
    for s in skipped[:MAX_LISTED]:
        print(f"  {s['file_name']}: {s['reason']}")
    if len(skipped) > MAX_LISTED:
        print(f"  and {len(skipped) - MAX_LISTED} more in {options.out / 'skipped.json'}")


def predict(model: Predictor, path: Path, out: Path, crf: Crf | None = None, force: bool = False) -> Results:
    """Segment a photograph, a video, or a folder of them, and write the files that docs/folder.md lists.

    Raises InputError if no input can be read, or if `out` is not empty and force is False.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not force):
        raise InputError(f"{out} exists already; give another folder, or --force to write into it")
    results = Results()
    sources = find_sources(path, out, results)
    out.mkdir(parents=True, exist_ok=True)  # fails before the work if it cannot be written
    videos = [s for s in sources if s.path.suffix.lower() in video.SUFFIXES]
    photos = [s for s in sources if s not in videos]
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        warnings.filterwarnings("ignore", module="PIL")
        if photos:
            predict_photos(model, photos, out, crf, pool, results)
        for source in videos:
            try:
                predict_video(model, source, out, crf, pool, results)
            except InputError as error:
                results.skip(source.name, str(error).removeprefix(f"{source.path} "))
    if not results.records:
        first = results.skipped[0]
        reason = first["reason"] if path.is_file() else f"nothing could be read ({first['file_name']}: {first['reason']})"
        raise InputError(f"{path}: {reason}")
    write_listings(model, out, results)
    return results


def find_sources(path: Path, out: Path, results: Results) -> list[Source]:
    """The photographs and videos to predict, by name, without those below `out`. Raises InputError if there is none."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; name a photograph, a folder of them, or a video")
    if path.is_file():
        return [Source(path.name, path)]
    dataset = readers.find_folder(readers.Data("folder", str(path), str(path), None, None, None))
    for r in dataset.rejected:
        results.skip(r.file_name, r.reason)
    root, sources = path.resolve(), []
    names = [c.file_name for c in dataset.candidates]
    names += [p.relative_to(path).as_posix() for p in path.rglob("*") if p.suffix.lower() in video.SUFFIXES]
    for name in sorted(names):
        if (root / name).resolve().is_relative_to(out.resolve()):
            continue  # an earlier call wrote it
        if reason := examination.refuse(root, name):
            results.skip(name.encode("utf-8", "backslashreplace").decode(), reason)
        else:
            sources.append(Source(name, path / name))
    if not sources:
        contents = [readers.format_counts(dataset.ignored)] if dataset.ignored else []
        if skipped := results.skipped:
            first = f"{skipped[0]['file_name']}: {skipped[0]['reason']}"
            contents.append(first if len(skipped) == 1 else f"{len(skipped)} skipped, the first: {first}")
        raise InputError(f"{path} has no photograph or video ({'; '.join(contents) or 'empty'}); name a folder that has some")
    return sources


def map_ahead(pool: ThreadPoolExecutor, items: Iterable[T], work: Callable[[T], R]) -> Iterator[tuple[T, "Future[R]"]]:
    """Yield each item, in order, with the future of work(item). At most THREADS + 1 futures are pending."""
    pending: deque[tuple[T, Future[R]]] = deque()
    for item in items:
        pending.append((item, pool.submit(work, item)))
        if len(pending) > THREADS:
            yield pending.popleft()
    yield from pending


def record(name: str, prediction: Prediction) -> Record:
    height, width = prediction.labels.shape
    return Record(name, (height, width), prediction.annotations(), prediction.instances, prediction.fractions())


def predict_photos(
    model: Predictor, sources: list[Source], out: Path, crf: Crf | None, pool: ThreadPoolExecutor, results: Results
) -> None:
    """Threads take turns at the network (tiles.NETWORK_LOCK); the others read, draw and write."""

    def work(source: Source) -> Record:
        prediction = model.predict(source.path, crf)
        pictures = {"labels": prediction.index(), "overlays": prediction.overlay()}
        if prediction.detections:
            pictures["instances"] = prediction.boxes()
        for folder, image in pictures.items():
            path = out / folder / f"{source.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, "PNG", compress_level=PNG_LEVEL)
        return record(source.name, prediction)

    with Meter(len(sources), "predict") as meter:
        for source, future in map_ahead(pool, sources, work):
            try:
                results.records.append(future.result())
            except InputError as error:
                results.skip(source.name, str(error).removeprefix(f"{source.path}: "))
            meter.step(source.name)


def predict_video(
    model: Predictor, source: Source, out: Path, crf: Crf | None, pool: ThreadPoolExecutor, results: Results
) -> None:
    """Write out/overlays/NAME.mp4, and the frames' label maps as PNGs in out/labels/NAME.zip."""
    reader = video.Reader(source.path)

    def work(frame: tuple[int, np.ndarray]) -> tuple[Record, np.ndarray, bytes]:
        number, pixels = frame
        prediction = model.predict(pixels, crf)
        picture = overlay.draw(pixels, prediction.labels, prediction.colours, prediction.names, fixed=True)
        return record(f"{source.name}/{number:06d}", prediction), picture, storage.encode_png(prediction.labels)

    def label_maps(writer: video.Writer) -> Iterator[tuple[str, bytes]]:
        with Meter(reader.count, source.name) as meter:
            for (number, _), future in map_ahead(pool, enumerate(reader), work):
                frame, picture, png = future.result()
                results.records.append(frame)
                writer.write(picture)
                yield f"{number:06d}.png", png
                meter.step()

    with video.Writer(out / f"overlays/{source.name}.mp4", reader.rate) as writer:
        storage.write_zip(out / f"labels/{source.name}.zip", label_maps(writer))


def write_listings(model: Predictor, out: Path, results: Results) -> None:
    """Write the files that list all pictures."""
    records = list(enumerate(results.records, 1))
    colours = {k: "#{:02x}{:02x}{:02x}".format(*model.colours[k].tolist()) for k in model.names}
    categories = [{"id": k, "name": name, "colour": colours[k]} for k, name in model.names.items() if k]
    images = [{"id": i, "file_name": r.name, "height": r.size[0], "width": r.size[1]} for i, r in records]
    coco = {"images": images, "categories": categories}
    annotations = [{**x, "image_id": i} for i, r in records for x in r.annotations]
    annotations = [{**x, "id": id} for id, x in enumerate(annotations, 1)]
    storage.write_json(out / "predictions.json", {**coco, "annotations": annotations})
    if model.detector is not None:
        instances = [{**x, "image_id": i} for i, r in records for x in r.instances]
        storage.write_json(out / "instances.json", {**coco, "annotations": instances})
    storage.write_json(out / "skipped.json", {"skipped": results.skipped})
    with storage.atomic_write(out / "summary.tsv") as part, part.open("w", encoding="utf-8") as file:
        print("image", "label", "name", "fraction", "confidence", sep="\t", file=file)
        for r in results.records:
            for f in r.fractions:
                name = " ".join(r.name.split("\t"))
                print(name, f.label, f.name, f"{f.fraction:.4f}", f"{f.confidence:.4f}", sep="\t", file=file)


def summary(names: dict[int, str], records: list[Record]) -> str:
    """A table of the labels that occur: fraction of all pixels, number of pictures, mean confidence."""
    total = sum(r.size[0] * r.size[1] for r in records)
    rows = [("label", "name", "pixels", "pictures", "confidence")]
    for label, name in names.items():
        areas = [(r.size[0] * r.size[1] * f.fraction, f.confidence) for r in records for f in r.fractions if f.label == label]
        if areas:
            area = sum(a for a, _ in areas)
            confidence = sum(a * c for a, c in areas) / area
            rows.append((str(label), name, f"{100 * area / total:.1f} %", str(len(areas)), f"{confidence:.2f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
