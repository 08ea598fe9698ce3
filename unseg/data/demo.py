"""Procedurally drawn scenes with exact truth: the data set that needs no download.

Six classes, each a silhouette with a texture of its own. As with fruit or birds, a class has typical colours, and they
overlap with its neighbours': an object's hue is drawn around its class's, and the nearest hue names the class two times in
three. Lightness varies from object to object. One to three objects a scene, later ones in front. Backgrounds are greyish
textures that drift into one another.

Written in COCO's layout (`images/`, `annotations/instances_{train,val}.json`), so that `unseg.data.readers`
reads it as it reads COCO.

Shapes: S pixels a side.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from unseg.core.console import track
from unseg.core.rle import Rle, coco_annotation, encode
from unseg.core.storage import write_json

CLASSES = ("disc", "square", "triangle", "star", "cross", "crescent")
COUNTS = (0.7, 0.2, 0.1)  # chances of one, two, three objects in a scene
HUE_SPREAD = 0.085  # of an object's hue around its class's, turns (standard deviation); classes are 1/6 apart


@dataclass(frozen=True)
class Demo:
    """The `demo` group of params.yaml."""

    train: int  # scenes to learn from
    val: int  # scenes held out
    size: int  # pixels, both sides

    def __post_init__(self) -> None:
        if self.train < 1 or self.val < 1:
            raise ValueError("demo.train and demo.val must be at least 1")
        if self.size < 32:
            raise ValueError(f"demo.size is {self.size}; scenes are drawn from 32 pixels up")


def scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Draw one scene.

    Returns:
        image [S, S, 3] uint8, and (class, visible mask [S, S] bool) of each object, classes from 1. An
        object of which less than a quarter stays visible is drawn but not listed, as annotators would.
    """
    image = background(rng, size)
    drawn: list[tuple[int, np.ndarray, int]] = []
    for _ in range(1 + int(rng.choice(len(COUNTS), p=COUNTS))):
        label = int(rng.integers(len(CLASSES)))
        taken = np.any([m for _, m, _ in drawn], 0) if drawn else np.zeros((size, size), bool)
        tries = [silhouette(rng, label, size) for _ in range(3)]
        mask, u, v = min(tries, key=lambda t: (t[0] & taken).sum() / max(1, t[0].sum()))  # overlap, but seldom bury
        image[mask] = paint(rng, label, u, v)[mask]
        drawn = [(k, m & ~mask, area) for k, m, area in drawn] + [(label + 1, mask, int(mask.sum()))]
    image += rng.normal(0, 4, image.shape).astype(np.float32)  # sensor noise
    visible = [(k, m) for k, m, area in drawn if m.sum() >= max(1, area // 4)]
    return image.clip(0, 255).astype(np.uint8), visible


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Eight greyish textures that drift into one another: [S, S, 3] float32, 0 to 255.

    A background varies as much within a scene as between scenes, so that it does not give away which scene a crop
    is from: what two crops of a scene surely share are its objects.
    """
    fronts = np.exp(3 * np.stack([cloud(rng, size, size / 12) for _ in range(8)]))  # [8, S, S]
    parts = np.stack([ground(rng, size) for _ in range(8)])  # [8, S, S, 3]
    return np.asarray((parts * (fronts / fronts.sum(0))[..., None]).sum(0), np.float32)


def ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """One texture: clouds at a random scale, grain, and a fine weave in a random direction. [S, S, 3]"""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 14)
    weave = np.sin((np.cos(angle) * x + np.sin(angle) * y) * 2 * np.pi / period)
    relief = (
        rng.uniform(4, 14) * cloud(rng, size, rng.uniform(1.5, 5))
        + rng.uniform(0, 10) * cloud(rng, size, 0.8)
        + rng.uniform(0, 14) * weave
    )  # [S, S]
    tint = hsv(rng.uniform(), rng.uniform(0, 0.12), rng.uniform(0.45, 0.60))  # [3]
    return np.asarray(tint + relief[..., None] * (0.7 + 0.3 * tint / tint.max()), np.float32)


def cloud(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    """Smooth noise of unit variance; scale is the Gaussian's sigma in pixels. [S, S] float32"""
    noise = cv2.GaussianBlur(rng.normal(size=(size, size)).astype(np.float32), (0, 0), scale, borderType=cv2.BORDER_REFLECT)
    return np.asarray((noise - noise.mean()) / (noise.std() + 1e-6))


def silhouette(rng: np.random.Generator, label: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Place an object: its mask [S, S] bool and its own axes u, v [S, S], 1 at the radius."""
    radius = rng.uniform(0.24, 0.42) * size
    centre = rng.uniform(0.6 * radius, size - 0.6 * radius, 2)  # x, y; may be cut off by the frame
    angle, stretch = rng.uniform(-0.5, 0.5), rng.uniform(0.85, 1.18)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    dx, dy = x - centre[0], y - centre[1]
    u = (np.cos(angle) * dx + np.sin(angle) * dy) / (radius * stretch)
    v = (np.cos(angle) * dy - np.sin(angle) * dx) * stretch / radius
    r, phi = np.hypot(u, v), np.arctan2(u, -v)
    name = CLASSES[label]
    if name == "disc":
        mask = r < 0.9
    elif name == "square":
        mask = np.maximum(abs(u), abs(v)) < 0.8
    elif name == "triangle":
        mask = (v < 0.7) & (v > 1.75 * abs(u) - 0.95)
    elif name == "star":
        mask = r < 0.72 + 0.3 * np.cos(5 * phi)
    elif name == "cross":
        mask = (np.minimum(abs(u), abs(v)) < 0.34) & (np.maximum(abs(u), abs(v)) < 1)
    else:
        mask = (r < 1) & (np.hypot(u - 0.55, v + 0.1) > 0.72)
    return mask, u, v


def paint(rng: np.random.Generator, label: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The texture of a class in two colours of the object's own: [S, S, 3] float32."""
    hue = rng.normal(0.05 - label / len(CLASSES), HUE_SPREAD)
    light = hsv(hue + 0.04, rng.uniform(0.6, 0.85), rng.uniform(0.8, 1.0))
    dark = hsv(hue, rng.uniform(0.75, 1.0), rng.uniform(0.25, 0.45))
    name, wave = CLASSES[label], np.pi * rng.uniform(0.9, 1.1)
    if name == "disc":  # polka dots
        ink = np.cos(2.2 * wave * u) * np.cos(2.2 * wave * v) > 0.3
    elif name == "square":  # stripes
        ink = np.sin(4.5 * wave * v) > 0
    elif name == "triangle":  # a coarse chequerboard
        ink = np.sin(3.3 * wave * u) * np.sin(3.3 * wave * v) > 0
    elif name == "star":  # a dark heart
        ink = np.hypot(u, v) < 0.36
    elif name == "cross":  # rungs along the arms
        ink = np.sin(5 * wave * np.where(abs(u) > abs(v), u, v)) > 0
    else:  # a light vein
        ink = abs(np.hypot(u, v) - 0.8) > 0.09
    return np.where(ink[..., None], dark, light).astype(np.float32)


def hsv(h: float, s: float, v: float) -> np.ndarray:
    """Hue, saturation and value in 0..1 (hue wraps) to RGB [3], 0 to 255."""
    k = (np.array([5.0, 3.0, 1.0]) + 6 * h) % 6
    return np.asarray(255 * (v - v * s * np.clip(np.minimum(k, 4 - k), 0, 1)))


def write(root: Path, demo: Demo, seed: int) -> None:
    """Draw the data set into root; the same seed gives the same bytes, and scene i does not depend on the others."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for split, count in (("train", demo.train), ("val", demo.val)):
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            files = [root / "images" / f"{split}_{i:05d}.png" for i in range(count)]
            seeds = [(seed, split == "val", i) for i in range(count)]
            drawn = pool.map(draw, files, seeds, [demo.size] * count, chunksize=50)
            for file, objects in zip(files, track(drawn, f"draw {split}", count), strict=True):
                number = len(images) + 1 + (demo.train if split == "val" else 0)
                images.append({"id": number, "file_name": file.name, "height": demo.size, "width": demo.size})
                annotations += [
                    coco_annotation(len(annotations) + i, number, label, mask) for i, (label, mask) in enumerate(objects, 1)
                ]
            truth = {"images": images, "annotations": annotations, "categories": categories}
            write_json(root / "annotations" / f"instances_{split}.json", truth)


def draw(file: Path, seed: tuple[int, ...], size: int) -> list[tuple[int, Rle]]:
    """Write one scene; returns its objects."""
    pixels, objects = scene(np.random.default_rng(seed), size)
    Image.fromarray(pixels).save(file)
    return [(label, encode(mask)) for label, mask in objects]
