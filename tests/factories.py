"""What several tests build: params groups, image records, instances, detections; and read: TensorBoard's event files."""

import io
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from PIL import Image as Pillow

from unseg.core import instances, masks, params
from unseg.core.image_index import ImageRecord
from unseg.core.instances import Detection, Instance

ROOT = Path(__file__).parents[1]
T = TypeVar("T")
MINE: dict[str, Any] = {  # the `mine` group of a random ViT, without resize
    "method": "maskdistill",
    "head": "models/fresh",
    "mass": 0.75,
    "facet": "keys",
    "layer": -1,
    "flip": False,
    "scales": [1.0],
    "normalize": False,
    "threshold": 0.0,
    "patches": 400,
    "objects": 1,
    "stop": 0.3,
    "keep": 0.4,
    "rank": "logits",
    "center": True,
    "component": True,
    "precision": "fp32",
}


@cache
def demo_params() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    return content


def group(key: str, kind: type[T], /, **changes: Any) -> T:
    """A group of the shipped params.yaml as the dataclass kind, with some values changed; checked as one that is read."""
    node = demo_params()
    for part in key.split("."):
        node = node[part]
    built: T = params.check(key, kind, {**node, **changes}, "params.yaml")
    return built


def image(id: int = 1, size: tuple[int, int] = (8, 8), split: str = "both", file_name: str | None = None) -> ImageRecord:
    return ImageRecord(id, file_name or f"{id}.png", *size, split)


def instance(mask: np.ndarray, image_id: int = 1, category_id: int = 0, id: int = 1) -> Instance:
    return instances.instance(id, image_id, category_id, masks.encode(mask))


def detection(mask: np.ndarray, score: float = 0.9, image_id: int = 1, category_id: int = 0) -> Detection:
    encoded = masks.encode(mask)
    return Detection(image_id, category_id, encoded, encoded.bbox, score)


def clustering(**changes: Any) -> Any:
    """A `Clustering`: K-means with K = 3 on whitened tokens, with some values changed."""
    from unseg.clustering.algorithms import Clustering

    values = {"k": 3, "whiten": "std", "components": None, "algorithm": "full", "starts": 3, "iterations": 50, "neighbors": 5}
    values |= {"overclusters": 20, "uncertain": 0.2}
    return group("cluster", Clustering, **(values | {"support": None} | changes))


def token_blobs(sizes: tuple[int, ...], width: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [M, D] float32 around one direction for each size, and the index of the direction of each, shuffled."""
    rng = np.random.default_rng(seed)
    index = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    directions = np.linalg.qr(rng.normal(size=(width, width)))[0][: len(sizes)]
    return (directions[index] + rng.normal(0, 0.05, (len(index), width))).astype(np.float32), index


def section_html(template: str, data: Any) -> str:
    """A section of the report, as HTML."""
    from unseg.report.page import TEMPLATES, Section

    section = Section("id", "title", template, data)
    return TEMPLATES.get_template(f"sections/{template}.html.j2").render(section=section)


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The (step, value) of each curve of the one run below a folder of event files."""
    events = accumulator(folder)
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def logged_pictures(folder: Path) -> dict[str, list[tuple[int, np.ndarray]]]:
    """The (step, picture [H, W, 3] uint8) of each name, likewise."""
    events = accumulator(folder)
    tags = events.Tags()["images"]
    return {t: [(e.step, np.asarray(Pillow.open(io.BytesIO(e.encoded_image_string)))) for e in events.Images(t)] for t in tags}


def accumulator(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = {path.parent for path in folder.rglob("events.*")}
    return EventAccumulator(str(run), {"scalars": 0, "images": 0}).Reload()
