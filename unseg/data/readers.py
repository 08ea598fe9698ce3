"""Data sets on disk: which photographs there should be, and which are held out.

Three kinds:
    folder  any directory of photographs, and of zip archives of them, searched recursively; nothing held out, no annotation.
    voc     PASCAL VOC's layout: lists of stems, JPEGImages/, SegmentationClass/ (or -Aug), SegmentationObject/.
    coco    photographs and an instances JSON a split, or one JSON and text lists (COCO20k; the demo set).
`unseg.data.examination` opens the photographs, `unseg.data.truth` reads the annotations.
"""

import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from PIL import Image as Pillow

from unseg.core.console import InputError
from unseg.data import coco, photos

NO_PHOTOS = {"PDF", "PALM", "MPEG", "BUFR", "GRIB", "HDF5", "IPTC", *photos.DRAWINGS}  # formats whose suffixes are ignored


@dataclass(frozen=True)
class Data:
    """The `data` group of params.yaml."""

    kind: str  # folder | voc | coco
    root: str  # the whole data set; relative to the repository's root, or absolute
    images: str  # the photographs: root or a folder below it; no model's stage reads more than this
    train: str | None  # below root: voc: list of stems; coco: instances JSON, or list of file names, stems or ids
    val: str | None  # the same, held out; null: nothing. An image in both lists is learned from and judged
    annotations: str | None  # below root; coco: the instances JSON, where train or val is a text list

    def __post_init__(self) -> None:
        if self.kind not in ("folder", "voc", "coco"):
            raise ValueError(f"data.kind is {self.kind}; it must be folder, voc or coco")
        if not Path(os.path.abspath(self.images)).is_relative_to(os.path.abspath(self.root)):
            raise ValueError(f"data.images is {self.images}; it must be data.root ({self.root}) or a folder below it")
        files = {"train": self.train, "val": self.val, "annotations": self.annotations}
        for name, file in files.items():
            if file is not None and (self.kind == "folder" or (self.kind == "voc" and name == "annotations")):
                raise ValueError(f"data.{name} is {file}; it must be null for kind {self.kind}")
            if file is not None and (not file or os.path.isabs(file) or ".." in Path(file).parts):
                raise ValueError(f"data.{name} is {file!r}; it must be a file below data.root, named from there")
        if self.kind != "folder" and self.train is None:
            raise ValueError(f"data.train is null; kind {self.kind} needs the file that lists the images to learn from")
        if self.kind == "coco" and (self.annotations is None) == any(f and not is_json(f) for f in (self.train, self.val)):
            raise ValueError(f"data.annotations is {self.annotations}; it must name the JSON if train or val is a text list")

    def instances(self, listed: str) -> Path:
        """coco: the JSON behind data.train or data.val."""
        return Path(self.root) / (listed if is_json(listed) else self.annotations or "")


def is_json(file: str) -> bool:
    return file.lower().endswith(".json")


@dataclass(frozen=True)
class Candidate:
    """A file that should be a photograph."""

    file_name: str  # relative to data.images, with forward slashes
    split: str
    id: int | None = None  # the data set's own
    size: tuple[int, int] | None = None  # (H, W) that the data set claims
    annotated: bool = False  # there is truth, drawn on the photograph as it is stored


@dataclass(frozen=True)
class Rejected:
    file_name: str
    reason: str  # "what: detail", in plain words


@dataclass(frozen=True)
class Dataset:
    candidates: list[Candidate] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)  # what is listed or met but cannot be a candidate
    ignored: Counter[str] = field(default_factory=Counter)  # suffix: files that do not claim to be photographs


def find_dataset(data: Data) -> Dataset:
    """All candidates in the order of their names.

    Raises:
        InputError: no such folder or list, a list that cannot be used, or nothing found.
    """
    for key, folder in (("root", data.root), ("images", data.images)):
        if not Path(folder).is_dir():
            raise InputError(f"data.{key}: {folder}: no such folder; put the data set there, or change params.yaml")
    found = {"folder": find_folder, "voc": find_voc, "coco": find_coco}[data.kind](data)
    if not found.candidates:
        what = count_photos(found.ignored) or count_photos(Counter(r.reason for r in found.rejected)) or "empty"
        raise InputError(f"{data.images}: no image found ({what}); put photographs there, or change data in params.yaml")
    found.candidates.sort(key=lambda c: c.file_name)
    return found


def count_photos(counts: Counter[str]) -> str:
    """Counts in words, e.g. "3 .txt, 1 .pdf", the most frequent first."""
    return ", ".join(f"{n} {name}" for name, n in sorted(counts.items(), key=lambda c: (-c[1], c[0])))


def find_folder(data: Data) -> Dataset:
    """Every file with an image's suffix, in archives too; hidden ones are passed over, links to folders not followed."""
    root, found = Path(data.images), Dataset()
    suffixes = {suffix for suffix, form in Pillow.registered_extensions().items() if form not in NO_PHOTOS}

    def unreadable(error: OSError) -> None:
        found.rejected.append(Rejected(Path(error.filename).relative_to(root).as_posix(), f"cannot be opened: {error.strerror}"))

    for folder, folders, files in os.walk(root, onerror=unreadable):
        folders[:] = [f for f in folders if not f.startswith(".")]
        here = Path(folder).relative_to(root)
        found.rejected.extend(
            Rejected((here / f).as_posix(), "a link to a folder, not followed") for f in folders if (root / here / f).is_symlink()
        )
        for name in files:
            suffix = Path(name).suffix.lower()
            if suffix in suffixes and not name.startswith("."):
                found.candidates.append(Candidate((here / name).as_posix(), "train"))
            elif suffix == photos.ARCHIVE and not name.startswith("."):
                look_into(root, here / name, suffixes, found)
            elif not name.startswith("."):
                found.ignored[suffix or "without suffix"] += 1
    return found


def look_into(root: Path, name: Path, suffixes: set[str], found: Dataset) -> None:
    """The members of a zip archive as candidates `<archive>/<member>`."""
    try:
        with zipfile.ZipFile(root / name) as archive:
            members = [m for m in archive.infolist() if not m.filename.endswith("/")]  # is_dir() fails where there is no name
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        found.rejected.append(Rejected(name.as_posix(), f"an archive that cannot be read: {error}"))
        return
    for member in sorted({m.filename for m in members}):
        path = PurePosixPath(member)
        suffix = path.suffix.lower()
        if path.is_absolute() or ".." in path.parts:
            found.rejected.append(Rejected(f"{name.as_posix()}/{member}", "leads out of its archive"))
        elif any(part.startswith((".", "__MACOSX")) for part in path.parts):
            continue
        elif suffix in suffixes and path.as_posix() == member:
            found.candidates.append(Candidate(f"{name.as_posix()}/{member}", "train"))
        else:
            found.ignored[suffix or "without suffix"] += 1


def mask_folder(root: Path, stem: str) -> str:
    """Where VOC's class mask of that stem lies: SegmentationClass, or SegmentationClassAug where only that has it.

    The augmented set's 10,582 training masks come as a folder of that name, or put into SegmentationClass.
    """
    usual, more = "SegmentationClass", "SegmentationClassAug"
    return more if (root / more / f"{stem}.png").is_file() and not (root / usual / f"{stem}.png").is_file() else usual


def find_voc(data: Data) -> Dataset:
    """The stems of the lists, as JPEGImages/<stem>.jpg (or .jpeg, .png)."""
    root, images, found = Path(data.root), Path(data.images), Dataset()
    val = read_list(root / data.val) if data.val else []
    for stem, split in splits(read_list(root / str(data.train)), val).items():
        names = [stem + suffix for suffix in (".jpg", ".jpeg", ".png")]
        name = next((n for n in names if (images / n).is_file()), names[0])
        annotated = (root / mask_folder(root, stem) / f"{stem}.png").is_file()
        found.candidates.append(Candidate(PurePosixPath(name).as_posix(), split, annotated=annotated))
    return found


def find_coco(data: Data) -> Dataset:
    """The images of the JSONs, or those of them that the lists name.

    Ids are COCO's own, unless two JSONs use one id for two photographs or two ids for one: then there are none.
    """
    root, found = Path(data.root), Dataset()
    chosen: list[dict[str, Candidate]] = []
    for listed in (data.train, data.val):
        chosen.append({})
        if listed is None:
            continue
        content = coco.read(data.instances(listed), Path(data.images))
        records = content.images
        if not is_json(listed):
            records, absent = choose(content.images, root / listed)
            reason = f"not in the annotations, or not the only one of its name: {content.path.name}"
            found.rejected.extend(Rejected(line, reason) for line in absent)
        annotated = {a["image_id"] for a in content.annotations or []}
        chosen[-1] = {r.file_name: Candidate(r.file_name, "", r.id, r.size, r.id in annotated) for r in records}
    train, val = chosen
    pairs = {(c.id, c.file_name) for part in chosen for c in part.values()}
    own = len(pairs) == len({id for id, _ in pairs}) == len({name for _, name in pairs})
    for name, split in splits(train, val).items():
        candidate = val.get(name) or train[name]
        found.candidates.append(replace(candidate, split=split, id=candidate.id if own else None))
    return found


def splits(train: Iterable[str], val: Iterable[str]) -> dict[str, str]:
    """Each name's split: train, val, or both."""
    split = dict.fromkeys(train, "train")
    for name in val:
        split[name] = "both" if name in split else "val"
    return split


def choose(records: list[coco.CocoImage], file: Path) -> tuple[list[coco.CocoImage], list[str]]:
    """The records that a text list names, and the lines that name none.

    A line is a file name with or without its folder, a stem, or an id; COCO's 2014 names also find the
    photograph under its 2017 name.
    """
    ids, exact = {str(r.id): r for r in records}, {r.file_name: r for r in records}
    loose: dict[str, coco.CocoImage | None] = {}
    for r in records:
        path = PurePosixPath(r.file_name)
        for name in {path.name, path.stem}:
            loose[name] = None if name in loose else r  # None: it could be either
    chosen: dict[str, coco.CocoImage] = {}
    absent = []
    for line in read_list(file):
        path = PurePosixPath(line)
        old = re.fullmatch(r"COCO_\w+2014_0*(\d+)", path.stem)
        hits = (exact.get(line), loose.get(path.name), loose.get(path.stem), ids.get(old[1] if old else line))
        record = next((r for r in hits if r), None)
        if record is None:
            absent.append(line)
        elif record.file_name in chosen:
            raise InputError(f"{file}: {line} names {record.file_name} a second time; remove one of the lines")
        else:
            chosen[record.file_name] = record
    return list(chosen.values()), absent


def read_list(file: Path) -> list[str]:
    """The lines of a text list, blank ones left out."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as a list of images ({error}); see data in params.yaml") from None
    if not lines:
        raise InputError(f"{file} is empty; it must name an image a line")
    if (twice := coco.first_twice(lines)) is not None:
        raise InputError(f"{file} names {twice} twice; remove one of the lines")
    return lines
