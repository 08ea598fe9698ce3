"""The files of a model repository, as `unseg push` writes them and `unseg.load` reads them.

    model.safetensors      the final segmenter, byte for byte as the run has it
    config.json            what `unseg.load` needs beside the weights, and the parameters of the run
    clusters.yaml          names, colours and merges of the clusters
    detector.safetensors   if wanted
    README.md, pictures/   the model card, for people

A repository can come from anywhere, so `unseg.load` opens only files of these names, as safetensors, JSON and safe YAML.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unseg.core import params, storage
from unseg.core.console import InputError
from unseg.core.fetched import CROC, FETCHED
from unseg.detection.settings import Detect
from unseg.serving.hub import client

MODEL, DETECTOR, CONFIG, CLUSTERS, CARD = "model.safetensors", "detector.safetensors", "config.json", "clusters.yaml", "README.md"
PICTURES = "pictures"  # a folder
FORMAT = 1  # of config.json; increased when older ones can no longer be read
GROUPS = (  # of params.yaml; others have no influence on the model, or name the user's files
    *("seed", "backbone", "embedder", "croc", "mine", "foreground", "embed", "cluster", "detector", "detect", "retrain"),
    *("self_train", "detections", "aggregate", "segmenter", "regroup", "rounds", "refine", "final", "relabel", "predict", "crf"),
)
OURS = re.compile(rf"models/(fresh|foreground\.safetensors)|{re.escape(CROC)}|{FETCHED.pattern}")
FILES = ("weights", "init")  # keys of params.yaml that name files


@dataclass(frozen=True)
class Repository:
    """A repository on this machine."""

    model: Path
    clusters: Path
    detector: Path | None  # None: it was not asked for
    detect: Detect | None  # settings of the detector, if it has one
    input_size: str | int


def is_named(path: str | Path) -> bool:
    """Whether this is hf://... or a folder that `write` made, and not a file of weights."""
    return str(path).startswith(client.SCHEME) or (Path(path) / CONFIG).is_file()


def read(path: str | Path, with_detector: bool) -> Repository:
    """Find the files of a repository; those of the hub are downloaded, if they are not in its cache.

    Args:
        path: hf://owner/name, hf://owner/name@revision, or a folder.

    Raises:
        InputError: it cannot be had, unseg has not written it, or it has no detector and one is wanted.
    """
    wanted = [MODEL, CONFIG, CLUSTERS, *([DETECTOR] if with_detector else [])]
    folder = client.download(str(path), wanted) if str(path).startswith(client.SCHEME) else Path(path)
    if not (folder / CONFIG).is_file():
        raise InputError(f"{path} has no {CONFIG}: `unseg push` did not write it; name another repository")
    about = storage.read_json(folder / CONFIG)
    if not isinstance(about, dict) or about.get("library_name") != "unseg":
        raise InputError(f"{path} is not a model of unseg: its {CONFIG} has not `library_name: unseg`; name another repository")
    if about.get("format") != FORMAT:
        versions = f"its format is {about.get('format')}, this one reads {FORMAT}"
        raise InputError(f"{path} is of another version of unseg ({versions}); push it again")
    detect = about.get("detect")
    detect = None if detect is None else params.check("detect", Detect, detect, folder / CONFIG)
    if with_detector and detect is None:
        raise InputError(f"{path} has no detector; predict without instances, or push it again with --detector")
    for file in (f for f in wanted if not (folder / f).is_file()):
        raise InputError(f"{path} has no {file}; push it again")
    return Repository(
        folder / MODEL, folder / CLUSTERS, folder / DETECTOR if with_detector else None, detect, about.get("input_size", "")
    )


def write(folder: Path, files: Mapping[str, bytes | Path]) -> None:
    """Write the files of a repository: their content, or the file that is copied."""
    for name, content in files.items():
        with storage.atomic_write(folder / name) as part:
            part.write_bytes(content) if isinstance(content, bytes) else shutil.copyfile(content, part)


def config(model: dict[str, Any], input_size: str | int, detect: dict[str, Any] | None, tree: Mapping[str, Any]) -> bytes:
    """The content of config.json.

    Args:
        model: the shape of the segmenter, with its training size and precision.
        detect: settings of the detector, if it is in the repository.
        tree: the content of params.yaml; what is about the user's files is left out.
    """
    described = {key: without_files(key, tree[key]) for key in GROUPS if key in tree}
    about = {"library_name": "unseg", "format": FORMAT, "model": model, "input_size": input_size, "params": described}
    return storage.to_json(about | ({"detect": detect} if detect else {})).encode()


def without_files(key: str, x: Any) -> Any:
    """x without the names of the user's files: a path becomes null, unless it is one of those that unseg writes."""
    if isinstance(x, dict):
        return {name: without_files(name, value) for name, value in x.items()}
    if isinstance(x, list):
        return [without_files("", item) for item in x]
    may_be_a_file = isinstance(x, str) and (key in FILES or re.search(r"[./\\]", x))
    return None if may_be_a_file and not OURS.fullmatch(x) else x
