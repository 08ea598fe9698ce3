"""`unseg predict`: photographs, folders of them and videos in; label maps, overlays, COCO JSON and a table out."""

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
from unseg.report import overlay
from unseg.segmentation.crf import Crf
from unseg.serving.api import LabelFraction, Prediction, Predictor

T = TypeVar("T")
R = TypeVar("R")
THREADS = 3  # photographs in work: while the network has one, others are read, drawn and written
FAST = 1  # of PNG's levels of compression: 9 takes ten times as long for files a tenth smaller


class Source(NamedTuple):
    """A photograph or a video: its name in the output, and where it is."""

    name: str
    path: Path


@dataclass
class Book:
    """What is known of all photographs so far, for the JSON files and the table."""

    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    instances: list[dict[str, Any]] = field(default_factory=list)
    shares: list[tuple[str, int, float, float]] = field(default_factory=list)  # image, label, share, confidence
    skipped: list[dict[str, str]] = field(default_factory=list)

    def add(self, told: "Told") -> None:
        id, first = len(self.images) + 1, len(self.annotations) + 1
        self.images.append({"id": id, "file_name": told.name, "height": told.size[0], "width": told.size[1]})
        self.annotations += [{**a, "id": first + i, "image_id": id} for i, a in enumerate(told.annotations)]
        self.instances += [{"image_id": id, **i} for i in told.instances]
        self.shares += [(told.name, s.label, s.share, s.confidence) for s in told.shares]

    def skip(self, name: str, reason: str) -> None:
        self.skipped.append({"file_name": name, "reason": reason})


class Told(NamedTuple):
    """What the book notes of one picture; ids are given there."""

    name: str
    size: tuple[int, int]
    annotations: list[dict[str, Any]]
    instances: list[dict[str, Any]]
    shares: list[LabelFraction]


def told(name: str, made: Prediction) -> Told:
    height, width = made.labels.shape
    return Told(name, (height, width), made.annotations(), made.instances, made.shares())


def sources(given: Path, out: Path, book: Book) -> list[Source]:
    """What there is to predict, in the order of names; what cannot be is noted in the book.

    Raises:
        InputError: no such file or folder, or a folder without any photograph or video.
    """
    if not given.exists():
        raise InputError(f"{given}: no such file or folder; name a photograph, a folder of them, or a video")
    if given.is_file():
        return [Source(given.name, given)]
    found = readers.find_folder(readers.Data("folder", str(given), str(given), None, None, None))
    for r in found.rejected:
        book.skip(r.file_name, r.reason)
    root, known = given.resolve(), []
    names = [c.file_name for c in found.candidates]
    names += [p.relative_to(given).as_posix() for p in given.rglob("*") if p.suffix.lower() in video.SUFFIXES]
    for name in sorted(names):
        if (root / name).resolve().is_relative_to(out.resolve()):
            continue  # what an earlier call wrote
        if reason := examination.refuse(root, name):
            book.skip(name.encode("utf-8", "backslashreplace").decode(), reason)
        else:
            known.append(Source(name, given / name))
    if not known:
        what = readers.count_photos(found.ignored) or (book.skipped[0]["reason"] if book.skipped else "empty")
        raise InputError(f"{given}: no photograph or video found ({what}); name a folder that has some")
    return known


def ahead(pool: ThreadPoolExecutor, items: Iterable[T], work: Callable[[T], R]) -> Iterator[tuple[T, "Future[R]"]]:
    """Items, in their order, with what `work` makes of them in the pool's threads; few are in work at a time."""
    waiting: deque[tuple[T, Future[R]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(work, item)))
        if len(waiting) > THREADS:
            yield waiting.popleft()
    yield from waiting


def write(out: Path, name: str, made: Prediction) -> Told:
    """The pictures of one photograph, and what there is to note of it."""
    drawn = {"labels": made.index(), "overlays": made.overlay()}
    if made.instances:
        drawn["instances"] = made.boxes()
    for folder, image in drawn.items():
        path = out / folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, "PNG", compress_level=FAST)
    return told(name, made)


def predict(model: Predictor, given: Path, out: Path, crf: Crf | None = None, force: bool = False) -> Book:
    """Write out/labels, out/overlays, out/predictions.json, out/summary.tsv, out/skipped.json (and out/instances).

    Raises:
        InputError: nothing to predict, nothing that could be read, or files in `out` while force is False.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not force):
        raise InputError(f"{out} is there already; give another folder, or --force to write over what is in it")
    book = Book()
    every = sources(given, out, book)
    out.mkdir(parents=True, exist_ok=True)  # before the work, so that it is known early where that cannot be
    films = [s for s in every if s.path.suffix.lower() in video.SUFFIXES]
    photos = [s for s in every if s not in films]
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        warnings.filterwarnings("ignore", module="PIL")
        if photos:
            predict_photos(model, photos, out, crf, pool, book)
        for film in films:
            try:
                predict_video(model, film, out, crf, pool, book)
            except InputError as error:
                book.skip(film.name, str(error).removeprefix(f"{film.path} "))
    if not book.images:
        first = book.skipped[0]
        alone = f"{given}: {first['reason']}"
        several = f"{given}: nothing could be read ({first['file_name']}: {first['reason']})"
        raise InputError(alone if given.is_file() else several)
    finish(model, out, book)
    return book


def predict_photos(
    model: Predictor, every: list[Source], out: Path, crf: Crf | None, pool: ThreadPoolExecutor, book: Book
) -> None:
    """The network takes one photograph after another (tiles.TURN) while those before and after it are written and read."""

    def work(source: Source) -> Told:
        return write(out, source.name, model.predict(source.path, crf))

    with Meter(len(every), "predict") as meter:
        for source, working in ahead(pool, every, work):
            try:
                book.add(working.result())
            except InputError as error:
                book.skip(source.name, str(error).removeprefix(f"{source.path}: "))
            meter.step(source.name)


def predict_video(model: Predictor, film: Source, out: Path, crf: Crf | None, pool: ThreadPoolExecutor, book: Book) -> None:
    """out/overlays/NAME.mp4, and the frames' label maps as PNGs in out/labels/NAME.zip."""
    reader = video.Reader(film.path)

    def work(frame: tuple[int, np.ndarray]) -> tuple[Told, np.ndarray, bytes]:
        made = model.predict(frame[1], crf)
        picture = overlay.drawn(made.pixels, made.labels, made.colours, made.names, fixed=True)
        return told(f"{film.name}/{frame[0]:06d}", made), picture, storage.encode_png(made.labels)

    def frames(sink: video.Writer) -> Iterator[tuple[str, bytes]]:
        with Meter(reader.count, film.name) as meter:
            for (i, _), working in ahead(pool, enumerate(reader), work):
                noted, picture, png = working.result()
                book.add(noted)
                sink.write(picture)
                yield f"{i:06d}.png", png
                meter.step()

    with video.Writer(out / f"overlays/{film.name}.mp4", reader.rate) as sink:
        storage.write_zip(out / f"labels/{film.name}.zip", frames(sink))


def finish(model: Predictor, out: Path, book: Book) -> None:
    """The files that speak of all photographs."""
    colours = {k: "#{:02x}{:02x}{:02x}".format(*model.colours[k].tolist()) for k in model.names}
    categories = [{"id": k, "name": name, "colour": colours[k]} for k, name in model.names.items() if k]
    coco = {"images": book.images, "categories": categories}
    storage.write_json(out / "predictions.json", {**coco, "annotations": book.annotations})
    if model.found_by is not None:
        storage.write_json(out / "instances.json", {**coco, "annotations": book.instances})
    storage.write_json(out / "skipped.json", {"skipped": book.skipped})
    with storage.atomic_write(out / "summary.tsv") as part, part.open("w", encoding="utf-8") as file:
        print("image", "label", "name", "share", "confidence", sep="\t", file=file)
        for name, label, share, sure in book.shares:
            print(" ".join(name.split("\t")), label, model.names[label], f"{share:.4f}", f"{sure:.4f}", sep="\t", file=file)


def summary(names: dict[int, str], book: Book) -> str:
    """A table for people: each label that occurs, its share of all pixels, and in how many pictures it is."""
    sizes = {i["file_name"]: i["height"] * i["width"] for i in book.images}
    rows = [("label", "name", "pixels", "pictures", "confidence")]
    for label, name in names.items():
        own = [(sizes[image], share, sure) for image, k, share, sure in book.shares if k == label]
        if own:
            weight = sum(size * share for size, share, _ in own)
            sure = sum(size * share * c for size, share, c in own) / weight
            rows.append((str(label), name, f"{100 * weight / sum(sizes.values()):.1f} %", str(len(own)), f"{sure:.2f}"))
    wide = [max(len(row[j]) for row in rows) for j in range(5)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)).rstrip() for row in rows)
