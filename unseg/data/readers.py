"""Data sets on disk: their photographs and splits.

Kinds:
    folder  any directory of photographs and of zip archives of them, searched recursively; all for training, no annotations.
    voc     PASCAL VOC's layout: lists of stems, JPEGImages/, SegmentationClass/ (or -Aug), SegmentationObject/.
    coco    photographs with an instances JSON for each split, or one JSON and text lists (COCO20k; the demo).

`unseg.data.examination` opens the photographs, `unseg.data.truth` reads the annotations.
"""

import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from PIL import Image as Pillow

from unseg.core.console import InputError
from unseg.data import coco, photos

NO_PHOTOS = {"PDF", "PALM", "MPEG", "BUFR", "GRIB", "HDF5", "IPTC", *photos.VECTOR_FORMATS}  # their suffixes are ignored


@dataclass(frozen=True)
class Data:
    """The `data` group of params.yaml."""

    kind: Literal["folder", "voc", "coco"]
    root: str  # the whole data set; absolute, or relative to the repository's root
    images: str  # the photographs: root or a folder below it. Stages that train or run models read nothing else
    train: str | None  # below root: voc: list of stems; coco: instances JSON, or list of file names, stems or ids
    val: str | None  # the same, held out; None: nothing. An image in both lists is for training and for evaluation
    annotations: str | None  # below root; coco: the instances JSON, if train or val is a text list

    def __post_init__(self) -> None:
        if not Path(os.path.abspath(self.images)).is_relative_to(os.path.abspath(self.root)):
            raise ValueError(f"data.images is {self.images}; it must be data.root ({self.root}) or a folder below it")
        for name, file in {"train": self.train, "val": self.val, "annotations": self.annotations}.items():
            if file is not None and (self.kind == "folder" or (self.kind == "voc" and name == "annotations")):
                raise ValueError(f"data.{name} is {file}; it must be null for kind {self.kind}")
            if file is not None and (not file or os.path.isabs(file) or ".." in Path(file).parts):
                raise ValueError(f"data.{name} is {file!r}; it must be a file below data.root, relative to it")
        if self.kind != "folder" and self.train is None:
            raise ValueError(f"data.train is null; kind {self.kind} needs the file that lists the training images")
        if self.kind == "coco" and (self.annotations is None) == any(f and not is_json(f) for f in (self.train, self.val)):
            raise ValueError(f"data.annotations is {self.annotations}; it must name the JSON if train or val is a text list")

    def instances(self, listed: str) -> Path:
        """coco: the JSON for data.train or data.val."""
        return Path(self.root) / (listed if is_json(listed) else self.annotations or "")


def is_json(file: str) -> bool:
    return file.lower().endswith(".json")


@dataclass(frozen=True)
class Candidate:
    """A file that should be a photograph."""

    file_name: str  # relative to data.images, with forward slashes
    split: str
    id: int | None = None  # in the data set
    size: tuple[int, int] | None = None  # (H, W) that the data set gives
    annotated: bool = False  # it has ground truth, which fits the photograph before EXIF orientation


@dataclass(frozen=True)
class Rejected:
    file_name: str
    reason: str  # "what: detail"


@dataclass(frozen=True)
class Dataset:
    candidates: list[Candidate] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)  # files that are listed or in the folder, but cannot be candidates
    ignored: Counter[str] = field(default_factory=Counter)  # number of other files by suffix


def find_dataset(data: Data) -> Dataset:
    """All candidates by name. Raises InputError for a missing folder, an invalid list, or if there is no candidate."""
    for key, folder in (("root", data.root), ("images", data.images)):
        if not Path(folder).is_dir():
            raise InputError(f"data.{key}: {folder}: no such folder; put the data set there, or change params.yaml")
    dataset = {"folder": find_folder, "voc": find_voc, "coco": find_coco}[data.kind](data)
    if not dataset.candidates:
        contents = format_counts(dataset.ignored) or format_counts(Counter(r.reason for r in dataset.rejected)) or "empty"
        raise InputError(f"{data.images}: no image found ({contents}); put photographs there, or change data in params.yaml")
    dataset.candidates.sort(key=lambda c: c.file_name)
    return dataset


def format_counts(counts: Counter[str]) -> str:
    """E.g. "3 .txt, 1 .pdf", the most frequent first."""
    return ", ".join(f"{n} {name}" for name, n in sorted(counts.items(), key=lambda c: (-c[1], c[0])))


def find_folder(data: Data) -> Dataset:
    """All files with an image's suffix, also in archives. Hidden files are skipped, links to folders are not followed."""
    root, dataset = Path(data.images), Dataset()
    suffixes = {suffix for suffix, form in Pillow.registered_extensions().items() if form not in NO_PHOTOS}
    errors: list[OSError] = []
    for path, folders, files in os.walk(root, onerror=errors.append):
        folder = Path(path).relative_to(root)
        folders[:] = [f for f in folders if not f.startswith(".")]
        links = [f for f in folders if (root / folder / f).is_symlink()]
        dataset.rejected.extend(Rejected((folder / f).as_posix(), "a link to a folder, not followed") for f in links)
        for name in (f for f in files if not f.startswith(".")):
            suffix = Path(name).suffix.lower()
            if suffix in suffixes:
                dataset.candidates.append(Candidate((folder / name).as_posix(), "train"))
            elif suffix == photos.ARCHIVE:
                add_members(root, folder / name, suffixes, dataset)
            else:
                dataset.ignored[suffix or "without suffix"] += 1
    for e in errors:
        dataset.rejected.append(Rejected(Path(e.filename).relative_to(root).as_posix(), f"cannot be opened: {e.strerror}"))
    return dataset


def add_members(root: Path, name: Path, suffixes: set[str], dataset: Dataset) -> None:
    """Add the members of a zip archive as candidates `<archive>/<member>`."""
    try:
        with zipfile.ZipFile(root / name) as archive:
            members = {m.filename for m in archive.infolist() if not m.filename.endswith("/")}  # is_dir() fails without a name
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        dataset.rejected.append(Rejected(name.as_posix(), f"an archive that cannot be read: {error}"))
        return
    for member in sorted(members):
        path = PurePosixPath(member)
        suffix, hidden = path.suffix.lower(), any(part.startswith((".", "__MACOSX")) for part in path.parts)
        if path.is_absolute() or ".." in path.parts:
            dataset.rejected.append(Rejected(f"{name.as_posix()}/{member}", "leads out of its archive"))
        elif not hidden and suffix in suffixes and path.as_posix() == member:
            dataset.candidates.append(Candidate(f"{name.as_posix()}/{member}", "train"))
        elif not hidden:
            dataset.ignored[suffix or "without suffix"] += 1


def mask_folder(root: Path, stem: str) -> str:
    """The folder of VOC's class mask of this stem: SegmentationClassAug (10,582 training masks) if only that has it."""
    standard, augmented = "SegmentationClass", "SegmentationClassAug"
    only_augmented = (root / augmented / f"{stem}.png").is_file() and not (root / standard / f"{stem}.png").is_file()
    return augmented if only_augmented else standard


def find_voc(data: Data) -> Dataset:
    """JPEGImages/<stem>.jpg (or .jpeg, .png) of the stems in the lists."""
    root, images, dataset = Path(data.root), Path(data.images), Dataset()
    val = read_list(root / data.val) if data.val else []
    for stem, split in splits(read_list(root / str(data.train)), val).items():
        names = [stem + suffix for suffix in (".jpg", ".jpeg", ".png")]
        name = next((n for n in names if (images / n).is_file()), names[0])
        annotated = (root / mask_folder(root, stem) / f"{stem}.png").is_file()
        dataset.candidates.append(Candidate(PurePosixPath(name).as_posix(), split, annotated=annotated))
    return dataset


def find_coco(data: Data) -> Dataset:
    """The images of the JSONs or lists. Ids are None if two JSONs use one id for two photographs, or two ids for one."""
    dataset = Dataset()
    train = list_coco(data, data.train, dataset)
    val = list_coco(data, data.val, dataset)
    pairs = {(c.id, c.file_name) for part in (train, val) for c in part.values()}
    unique = len(pairs) == len({id for id, _ in pairs}) == len({name for _, name in pairs})
    for name, split in splits(train, val).items():
        candidate = val.get(name) or train[name]
        dataset.candidates.append(replace(candidate, split=split, id=candidate.id if unique else None))
    return dataset


def list_coco(data: Data, listed: str | None, dataset: Dataset) -> dict[str, Candidate]:
    """The candidates of data.train or data.val by file name, split unset. Lines of a list that match none are rejected."""
    if listed is None:
        return {}
    content = coco.read(data.instances(listed), Path(data.images))
    images = content.images
    if not is_json(listed):
        images, unmatched = select(content.images, Path(data.root) / listed)
        reason = f"not in the annotations, or not the only one of its name: {content.path.name}"
        dataset.rejected.extend(Rejected(line, reason) for line in unmatched)
    annotated = {a["image_id"] for a in content.annotations or []}
    return {i.file_name: Candidate(i.file_name, "", i.id, i.size, i.id in annotated) for i in images}


def splits(train: Iterable[str], val: Iterable[str]) -> dict[str, str]:
    """The split of each name: train, val, or both."""
    split = dict.fromkeys(train, "train")
    for name in val:
        split[name] = "both" if name in split else "val"
    return split


def select(images: list[coco.CocoImage], file: Path) -> tuple[list[coco.CocoImage], list[str]]:
    """The images that a text list names, and the lines that match none.

    A line is a file name with or without folder, a stem, or an id. A name of COCO 2014 also matches the name of 2017.
    """
    by_id, by_path = {str(i.id): i for i in images}, {i.file_name: i for i in images}
    by_name: dict[str, coco.CocoImage | None] = {}
    for i in images:
        path = PurePosixPath(i.file_name)
        for name in {path.name, path.stem}:
            by_name[name] = None if name in by_name else i  # None: ambiguous
    selected: dict[str, coco.CocoImage] = {}
    unmatched = []
    for line in read_list(file):
        path = PurePosixPath(line)
        coco2014 = re.fullmatch(r"COCO_\w+2014_0*(\d+)", path.stem)
        id = coco2014[1] if coco2014 else line
        image = by_path.get(line) or by_name.get(path.name) or by_name.get(path.stem) or by_id.get(id)
        if image is None:
            unmatched.append(line)
        elif image.file_name in selected:
            raise InputError(f"{file}: {line} names {image.file_name} a second time; remove one of the lines")
        else:
            selected[image.file_name] = image
    return list(selected.values()), unmatched


def read_list(file: Path) -> list[str]:
    """The lines of a text list without blank ones. Raises InputError if it cannot be read, is empty or repeats a line."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as a list of images ({error}); see data in params.yaml") from None
    if not lines:
        raise InputError(f"{file} is empty; it must name an image a line")
    if (duplicate := coco.first_duplicate(lines)) is not None:
        raise InputError(f"{file} names {duplicate} twice; remove one of the lines")
    return lines
