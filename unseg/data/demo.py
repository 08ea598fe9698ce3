"""Procedurally drawn scenes with exact ground truth: the data set that needs no download.

Each of six classes has a silhouette and a texture. The hue of an object is drawn around the hue of its class, and the hues of
neighbouring classes overlap: the class of the nearest hue is right in two of three cases. Lightness varies between objects. A
scene has one to three objects, later ones in front, on a background of greyish textures that blend into one another. The layout
is COCO's (`images/`, `annotations/instances_{train,val}.json`).

Shapes: S pixels, both sides.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
from annotated_types import Ge
from PIL import Image

from unseg.core import masks
from unseg.core.console import track
from unseg.core.instances import instance
from unseg.core.masks import Mask
from unseg.core.params import PositiveInt
from unseg.core.storage import write_json

CLASSES = ("disc", "square", "triangle", "star", "cross", "crescent")
COUNTS = (0.7, 0.2, 0.1)  # probabilities of one, two, three objects in a scene
HUE_SPREAD = 0.085  # standard deviation of an object's hue, turns; classes are 1/6 apart


@dataclass(frozen=True)
class Demo:
    """The `demo` group of params.yaml."""

    train: PositiveInt  # scenes
    val: PositiveInt  # scenes
    size: Annotated[int, Ge(32)]  # pixels, both sides


def scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Draw one scene: image [S, S, 3] uint8, and (class, visible mask [S, S] bool) of each object, classes from 1.

    An object is left out if less than a quarter of it is visible, because annotators would leave it out.
    """
    image = background(rng, size)
    drawn: list[tuple[int, np.ndarray, int]] = []
    for _ in range(1 + int(rng.choice(len(COUNTS), p=COUNTS))):
        label = int(rng.integers(len(CLASSES)))
        occupied = np.any([m for _, m, _ in drawn], 0) if drawn else np.zeros((size, size), bool)
        candidates = [silhouette(rng, label, size) for _ in range(3)]
        mask, u, v = min(candidates, key=lambda t: (t[0] & occupied).sum() / max(1, t[0].sum()))  # the least hidden of three
        image[mask] = paint(rng, label, u, v)[mask]
        drawn = [(k, m & ~mask, area) for k, m, area in drawn] + [(label + 1, mask, int(mask.sum()))]
    image += rng.normal(0, 4, image.shape).astype(np.float32)  # sensor noise
    visible = [(k, m) for k, m, area in drawn if m.sum() >= max(1, area // 4)]
    return image.clip(0, 255).astype(np.uint8), visible


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Eight blended greyish textures: [S, S, 3] float32, 0 to 255.

    It varies as much within a scene as between scenes: two crops of a scene can be matched by their objects only.
    """
    strengths = np.exp(3 * np.stack([cloud(rng, size, size / 12) for _ in range(8)]))  # [8, S, S]
    textures = np.stack([ground(rng, size) for _ in range(8)])  # [8, S, S, 3]
    return np.asarray((textures * (strengths / strengths.sum(0))[..., None]).sum(0), np.float32)


def ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """One texture [S, S, 3]: clouds at a random scale, grain, and a fine weave in a random direction."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 14)
    weave = np.sin((np.cos(angle) * x + np.sin(angle) * y) * 2 * np.pi / period)
    relief = rng.uniform(4, 14) * cloud(rng, size, rng.uniform(1.5, 5))  # [S, S]
    relief = relief + rng.uniform(0, 10) * cloud(rng, size, 0.8) + rng.uniform(0, 14) * weave
    tint = hsv(rng.uniform(), rng.uniform(0, 0.12), rng.uniform(0.45, 0.60))  # [3]
    return np.asarray(tint + relief[..., None] * (0.7 + 0.3 * tint / tint.max()), np.float32)


def cloud(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    """Smooth noise of unit variance [S, S] float32; scale is the Gaussian's sigma, pixels."""
    noise = cv2.GaussianBlur(rng.normal(size=(size, size)).astype(np.float32), (0, 0), scale, borderType=cv2.BORDER_REFLECT)
    return np.asarray((noise - noise.mean()) / (noise.std() + 1e-6))


def silhouette(rng: np.random.Generator, label: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Place an object: its mask [S, S] bool and its coordinates u, v [S, S], 1 at the radius."""
    radius = rng.uniform(0.24, 0.42) * size
    centre = rng.uniform(0.6 * radius, size - 0.6 * radius, 2)  # x, y; the frame may cut the object
    angle, stretch = rng.uniform(-0.5, 0.5), rng.uniform(0.85, 1.18)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    dx, dy = x - centre[0], y - centre[1]
    u = (np.cos(angle) * dx + np.sin(angle) * dy) / (radius * stretch)
    v = (np.cos(angle) * dy - np.sin(angle) * dx) * stretch / radius
    r, phi = np.hypot(u, v), np.arctan2(u, -v)
    shapes = {
        "disc": r < 0.9,
        "square": np.maximum(abs(u), abs(v)) < 0.8,
        "triangle": (v < 0.7) & (v > 1.75 * abs(u) - 0.95),
        "star": r < 0.72 + 0.3 * np.cos(5 * phi),
        "cross": (np.minimum(abs(u), abs(v)) < 0.34) & (np.maximum(abs(u), abs(v)) < 1),
        "crescent": (r < 1) & (np.hypot(u - 0.55, v + 0.1) > 0.72),
    }
    return shapes[CLASSES[label]], u, v


def paint(rng: np.random.Generator, label: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The texture of a class in two random colours: [S, S, 3] float32."""
    hue = rng.normal(0.05 - label / len(CLASSES), HUE_SPREAD)
    light = hsv(hue + 0.04, rng.uniform(0.6, 0.85), rng.uniform(0.8, 1.0))
    dark = hsv(hue, rng.uniform(0.75, 1.0), rng.uniform(0.25, 0.45))
    wave = np.pi * rng.uniform(0.9, 1.1)
    textures = {
        "disc": np.cos(2.2 * wave * u) * np.cos(2.2 * wave * v) > 0.3,  # polka dots
        "square": np.sin(4.5 * wave * v) > 0,  # stripes
        "triangle": np.sin(3.3 * wave * u) * np.sin(3.3 * wave * v) > 0,  # a coarse chequerboard
        "star": np.hypot(u, v) < 0.36,  # a dark centre
        "cross": np.sin(5 * wave * np.where(abs(u) > abs(v), u, v)) > 0,  # rungs along the arms
        "crescent": abs(np.hypot(u, v) - 0.8) > 0.09,  # a light stripe along its edge
    }
    return np.where(textures[CLASSES[label]][..., None], dark, light).astype(np.float32)


def hsv(h: float, s: float, v: float) -> np.ndarray:
    """Hue, saturation and value in 0..1 (hue wraps) to RGB [3], 0 to 255."""
    k = (np.array([5.0, 3.0, 1.0]) + 6 * h) % 6
    return np.asarray(255 * (v - v * s * np.clip(np.minimum(k, 4 - k), 0, 1)))


def write(root: Path, demo: Demo, seed: int) -> None:
    """Draw the data set into root. The same seed gives the same bytes; scene i does not depend on the number of scenes."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for split, count, first_id in (("train", demo.train, 1), ("val", demo.val, 1 + demo.train)):
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            files = [root / "images" / f"{split}_{i:05d}.png" for i in range(count)]
            seeds = [(seed, split == "val", i) for i in range(count)]
            scenes = pool.map(draw, files, seeds, [demo.size] * count, chunksize=50)
            for id, (file, objects) in enumerate(zip(files, track(scenes, f"draw {split}", count), strict=True), first_id):
                images.append({"id": id, "file_name": file.name, "height": demo.size, "width": demo.size})
                for label, mask in objects:
                    annotations.append(instance(len(annotations) + 1, id, label, mask).to_coco())
            content = {"images": images, "annotations": annotations, "categories": categories}
            write_json(root / "annotations" / f"instances_{split}.json", content)


def draw(file: Path, seed: tuple[int, ...], size: int) -> list[tuple[int, Mask]]:
    """Write one scene; return (class, visible mask) of each object."""
    pixels, objects = scene(np.random.default_rng(seed), size)
    Image.fromarray(pixels).save(file)
    return [(label, masks.encode(mask)) for label, mask in objects]
