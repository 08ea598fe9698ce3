"""The few verbs, for Python: `unseg.load(file).predict(photo)`. What they do is in the wings; here it is put together.

Shapes: H rows, W columns of a photograph; label maps are uint8 with 0 background, cluster + 1, 255 void.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from unseg.clustering import naming
from unseg.core import label_maps, rle
from unseg.core.console import InputError
from unseg.data import examination, photos
from unseg.detection import detector
from unseg.detection.settings import Detect
from unseg.engine import environment
from unseg.engine.precision import portable
from unseg.report import overlay, pictures, sheets
from unseg.segmentation import segmenter, tiles
from unseg.segmentation.crf import Crf
from unseg.serving.run import Run

Photo = str | Path | Pillow.Image | np.ndarray
PUBLISHED_CRF = Crf("conv", 10, 1.0, 3.0, 67.0, 3.0, 4.0, window=64, stride=8)  # docs/spec/maskdistill.md, B.5.4
DETECT_PIXELS = 1_500_000  # a larger photograph is reduced to this for the detector, which would scale it down anyway


class LabelFraction(NamedTuple):
    """How much of a photograph has a label."""

    label: int
    name: str
    share: float  # of the pixels
    confidence: float  # mean probability of the label there


@dataclass(frozen=True)
class Prediction:
    """What a segmenter makes of one photograph."""

    pixels: np.ndarray  # [H, W, 3] uint8 RGB, upright
    labels: np.ndarray  # [H, W] uint8
    confidence: np.ndarray  # [H, W] float32: probability of the label (after merging, before a CRF)
    names: dict[int, str]  # of the labels, background first
    colours: np.ndarray  # [256, 3] uint8, by label
    instances: list[dict[str, Any]]  # COCO results (category_id is a label), surest first; empty without a detector

    def shares(self) -> list[LabelFraction]:
        """Of each label in the map, the most frequent first; void, where nothing is known, has no line."""
        counts = np.bincount(self.labels.ravel(), minlength=256)
        sums = np.bincount(self.labels.ravel(), self.confidence.ravel(), 256)
        order = [k for k in np.argsort(-counts, kind="stable").tolist() if counts[k] and k in self.names]
        return [LabelFraction(k, self.names[k], float(counts[k] / self.labels.size), float(sums[k] / counts[k])) for k in order]

    def index(self) -> Pillow.Image:
        """The label map as a palette picture."""
        return overlay.indexed(self.labels, self.colours)

    def overlay(self) -> Pillow.Image:
        """The labels over the photograph, with a legend; the longer side from 320 to 1280 pixels."""
        return Pillow.fromarray(overlay.drawn(self.pixels, self.labels, self.colours, self.names))

    def boxes(self) -> Pillow.Image:
        """The sure instances (as in the report: score at least 0.5, ten at most) over the photograph, the surest on top."""
        photo = overlay.reduced(self.pixels)
        found = [i for i in self.instances if i["score"] >= sheets.SURE][: sheets.MOST]
        masks = [pictures.fit(rle.decode(i["segmentation"]), photo) for i in found]
        tags = [f"{self.names.get(i['category_id'], '')} {i['score']:.2f}" for i in found]
        labels = [i["category_id"] for i in found]
        return Pillow.fromarray(pictures.boxed(photo, masks, labels, tags, self.colours, np.zeros(256, bool)))

    def annotations(self, image_id: int = 1, first_id: int = 1) -> list[dict[str, Any]]:
        """A COCO annotation (run-length mask) for each label but background, with the mean confidence as score."""
        found: list[dict[str, Any]] = []
        labels = np.asfortranarray(self.labels)  # run lengths go down the columns
        for s in (s for s in self.shares() if s.label):
            mask = rle.encode(labels == s.label)
            score = round(s.confidence, 4)
            found.append({**rle.coco_annotation(first_id + len(found), image_id, s.label, mask), "score": score})
        return found


@dataclass(frozen=True)
class Predictor:
    """A segmenter, ready for photographs. Made by `load`."""

    net: segmenter.TrainedSegmenter
    clusters: naming.ClusterNames
    colours: np.ndarray
    device: torch.device
    seen: str | int
    found_by: detector.TrainedDetector | None

    @property
    def names(self) -> dict[int, str]:
        """The labels that a prediction can hold, and their names."""
        return self.clusters.names()

    @torch.inference_mode()
    def predict(self, photo: Photo, crf: Crf | bool | None = None) -> Prediction:
        """Label every pixel.

        Args:
            photo: a file, a Pillow image, or [H, W, 3] uint8 RGB.
            crf: refine outlines by a CRF; True takes the published settings, by method conv.

        Raises:
            InputError: not a photograph that can be read.
        """
        image = opened(photo)
        pixels = np.asarray(image)
        labels, sure = np.empty(pixels.shape[:2], np.uint8), np.empty(pixels.shape[:2], np.float32)
        table = self.clusters.label_lut()
        for top, found, p in self.answered(image, pixels, PUBLISHED_CRF if crf is True else crf or None):
            rows = slice(top, top + len(found))
            labels[rows], sure[rows] = table[found], p
        return Prediction(pixels, labels, sure, self.names, self.colours, self.instances(pixels))

    def answered(self, image: Pillow.Image, pixels: np.ndarray, crf: Crf | None) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Band by band: first row, labels with merges but not yet void, and their probabilities; both [h, W]."""
        drawn = ((top, self.merged(p)) for top, p in tiles.bands(self.net, image, self.seen, self.device))
        if crf is None:
            for top, p in drawn:
                best = p.max(0)
                yield top, best.indices.to(torch.uint8).numpy(), best.values.numpy()
        else:
            for top, found, p in tiles.refined(drawn, pixels, crf):
                yield top, found, p.gather(0, torch.from_numpy(found.astype(np.int64))[None])[0].numpy()

    def merged(self, p: Tensor) -> Tensor:
        """[C, h, W] with the probability of merged clusters added to their target's."""
        for k, entry in self.clusters.entries.items():
            if entry.merge is not None:
                p[entry.merge] += p[k + 1]
                p[k + 1] = 0
        return p

    def instances(self, pixels: np.ndarray) -> list[dict[str, Any]]:
        """The detector's, where there is one; those of ignored clusters, and of merged into background, are left out."""
        if self.found_by is None:
            return []
        size, table = pixels.shape[:2], self.clusters.label_lut()
        scale = min(1.0, (DETECT_PIXELS / (size[0] * size[1])) ** 0.5)
        small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else pixels
        x = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].to(self.device)
        kept = []
        with tiles.TURN:
            every = detector.instances(self.found_by, x)[0]
        for found in every:
            label = int(table[found["category_id"] + 1])
            if label in (0, label_maps.IGNORE_LABEL):
                continue
            kept.append({**(enlarged(found, size) if scale < 1 else found), "category_id": label})
        return kept


def load(
    path: str | Path,
    clusters: str | Path | None = None,
    detector_path: str | Path | None = None,
    detect: Detect | None = None,
    device: str | None = None,
    seen: str | int | None = None,
) -> Predictor:
    """A segmenter of unseg from its file.

    A model that was trained in bf16 runs in bf16 where the device has bfloat16 units, and in fp32 elsewhere.

    Args:
        path: e.g. models/segmenter-r1.safetensors.
        clusters: a clusters.yaml, for names, colours, merges and what to ignore.
        detector_path: models/detector.safetensors, for instances too; `detect` has its settings.
        device: cpu, cuda, mps; None: UNSEG_DEVICE, or the best there is.
        seen: what the network sees of a photograph: original (the paper), square (the published code), or its shorter
            side in pixels. None: what the file says, or the params.yaml of the run in whose models/ it lies, or original.

    Raises:
        InputError: a file that is not there, of another kind or of another version; clusters that the model has not; a
            detector of other labels than the segmenter's; a device that is not there, or too small.
    """
    net = segmenter.load(path)
    net = replace(net, precision=portable(net.precision))
    named = naming.read(clusters, net.labels - 1) if clusters else naming.ClusterNames(net.labels - 1)
    if net.names:
        known = {k: replace(named.entry(k), name=named.entry(k).name or name) for k, name in enumerate(net.names[1:])}
        named = replace(named, entries=known)
    if seen is None:
        folder = Path(path).resolve().parent
        seen = net.seen or (Run(folder.parent).seen if folder.name == "models" else "original")
    if not (seen in ("original", "square") or (isinstance(seen, int) and seen > 0)):
        raise InputError(f"a photograph cannot be seen as {seen!r}; it must be original, square or pixels of the shorter side")
    chosen = environment.device(device)
    try:
        net.model.to(chosen)
    except RuntimeError as error:  # such as: no memory left there
        raise InputError(f"{path} cannot be moved to {chosen} ({str(error).split(chr(10))[0]}); try cpu") from None
    found_by = None
    if detector_path:
        found_by = detector.load(detector_path, detect or Detect(800, 0.05, 0.5, 100, DETECT_PIXELS))
        if net.names or found_by.k + 1 != net.labels:
            raise InputError(f"{detector_path} finds clusters, which {path} does not label; predict without instances")
        found_by.model.to(chosen)
        found_by = replace(found_by, p=replace(found_by.p, precision=portable(found_by.p.precision)))
    return Predictor(net, named, overlay.colours(named), chosen, seen, found_by)


def enlarged(instance: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """An instance found on a reduced photograph, at its own size (H, W)."""
    mask = rle.decode(instance["segmentation"])
    whole = cv2.resize(mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
    factors = (size[1] / mask.shape[1], size[0] / mask.shape[0]) * 2  # of x, y, w, h
    box = [round(v * n, 2) for v, n in zip(instance["bbox"], factors, strict=True)]
    return {**instance, "segmentation": rle.encode(whole > 0), "bbox": box}


def opened(photo: Photo) -> Pillow.Image:
    """8-bit RGB, upright. Raises: InputError."""
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
            raise InputError(f"an array {photo.dtype} {list(photo.shape)} is no photograph; it must be uint8 [H, W, 3], RGB")
        photo = Pillow.fromarray(photo)
    try:
        image = photos.to_rgb(photo) if isinstance(photo, Pillow.Image) else photos.open_rgb(photo)
    except FileNotFoundError:
        raise InputError(f"{photo}: no such file") from None
    except Exception as error:  # decoders of broken files raise anything
        name = Path(photo) if isinstance(photo, str | Path) else Path("the image")
        raise InputError(f"{name}: {examination.explain(error, name)}; give a photograph that Pillow reads") from None
    if min(image.size) < examination.MIN_SIDE:
        raise InputError(f"{photo}: {image.width} x {image.height} pixels; each side must have at least {examination.MIN_SIDE}")
    return image
