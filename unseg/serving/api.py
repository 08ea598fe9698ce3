"""The Python API: `unseg.load(file).predict(photo)`.

Shapes: H rows, W columns of a photograph; h rows of a band of it. Label maps are uint8: 0 background, cluster + 1, 255 ignored.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from unseg.clustering import naming
from unseg.core import masks
from unseg.core.console import InputError
from unseg.core.instances import Detection, instance
from unseg.core.label_maps import IGNORE_LABEL
from unseg.data import examination, photos
from unseg.detection import detector
from unseg.detection.detector import TrainedDetector
from unseg.detection.settings import Detect
from unseg.engine import environment
from unseg.engine.precision import portable
from unseg.report import overlay, pictures, sheets
from unseg.segmentation import segmenter, tiles
from unseg.segmentation.crf import Crf
from unseg.segmentation.segmenter import TrainedSegmenter
from unseg.serving.hub import repository
from unseg.serving.run import Run

Photo = str | Path | Pillow.Image | np.ndarray
PUBLISHED_CRF = Crf("conv", 10, 1.0, 3.0, 67.0, 3.0, 4.0, window=64, stride=8)  # docs/spec/maskdistill.md, B.5.4
DETECT_PIXELS = 1_500_000  # larger photographs are reduced to this for the detector, which would scale them down anyway


class LabelFraction(NamedTuple):
    """A label of a photograph."""

    label: int
    name: str
    fraction: float  # of the pixels
    confidence: float  # mean probability of the label at its pixels


@dataclass(frozen=True)
class Prediction:
    """The segmentation of one photograph."""

    pixels: np.ndarray  # [H, W, 3] uint8 RGB, upright
    labels: np.ndarray  # [H, W] uint8
    confidence: np.ndarray  # [H, W] float32: probability of the label, after merging and before a CRF
    names: dict[int, str]  # by label, background first
    colours: np.ndarray  # [256, 3] uint8, by label
    detections: list[Detection]  # category_id is a label; highest score first; empty without a detector

    @property
    def instances(self) -> list[dict[str, Any]]:
        """The detections as COCO results; category_id is a label."""
        return [d.to_coco() for d in self.detections]

    def fractions(self) -> list[LabelFraction]:
        """The labels of the map, most frequent first, without the ignore label."""
        counts = np.bincount(self.labels.ravel(), minlength=256)
        sums = np.bincount(self.labels.ravel(), self.confidence.ravel(), 256)
        order = [k for k in np.argsort(-counts, kind="stable").tolist() if counts[k] and k in self.names]
        return [LabelFraction(k, self.names[k], float(counts[k] / self.labels.size), float(sums[k] / counts[k])) for k in order]

    def index(self) -> Pillow.Image:
        """The label map as a palette image."""
        return overlay.palette_image(self.labels, self.colours)

    def overlay(self) -> Pillow.Image:
        """The labels over the photograph, with a legend; the longer side has 320 to 1280 pixels."""
        return Pillow.fromarray(overlay.draw(self.pixels, self.labels, self.colours, self.names))

    def boxes(self) -> Pillow.Image:
        """The confident detections over the photograph, as in the report: score at least 0.5, ten at most."""
        photo = overlay.resize(self.pixels)
        confident = [d for d in self.detections if d.score >= sheets.MIN_SCORE][: sheets.MAX_DETECTIONS]
        labels = [d.category_id for d in confident]
        tags = [f"{self.names.get(d.category_id, '')} {d.score:.2f}" for d in confident]
        drawn = [pictures.resize_labels(d.mask.decode(), photo) for d in confident]
        return Pillow.fromarray(pictures.draw_instances(photo, drawn, labels, tags, self.colours, np.zeros(256, bool)))

    def annotations(self, image_id: int = 1, first_id: int = 1) -> list[dict[str, Any]]:
        """A COCO annotation (run-length mask) per label but background; `score` is the mean confidence."""
        labels = np.asfortranarray(self.labels)  # run lengths go down the columns
        objects = [f for f in self.fractions() if f.label]
        return [
            {**instance(id, image_id, f.label, masks.encode(labels == f.label)).to_coco(), "score": round(f.confidence, 4)}
            for id, f in enumerate(objects, first_id)
        ]


@dataclass(frozen=True)
class Predictor:
    """A loaded segmenter; `load` returns it."""

    net: TrainedSegmenter
    clusters: naming.ClusterNames
    colours: np.ndarray  # [256, 3] uint8, by label
    device: torch.device
    input_size: str | int  # see `load`
    detector: TrainedDetector | None

    @property
    def names(self) -> dict[int, str]:
        """The labels that a prediction can have, and their names."""
        return self.clusters.names()

    def rename(self, clusters: naming.ClusterNames) -> "Predictor":
        """The same network with other names, colours and merges of its clusters."""
        names = add_names(clusters, self.net)
        return replace(self, clusters=names, colours=overlay.colour_table(names))

    @torch.inference_mode()
    def predict(self, photo: Photo, crf: Crf | bool | None = None) -> Prediction:
        """Segment one photograph. Raises InputError if it cannot be read.

        Args:
            photo: a path, a Pillow image, or [H, W, 3] uint8 RGB.
            crf: refine outlines by this CRF; True: by the published settings, with method conv.
        """
        image = open_photo(photo)
        pixels = np.asarray(image)
        labels, confidence = np.empty(pixels.shape[:2], np.uint8), np.empty(pixels.shape[:2], np.float32)
        lut = self.clusters.label_lut()
        bands = ((top, self.merge(p)) for top, p in tiles.predict_bands(self.net, image, self.input_size, self.device))
        if crf:
            refined = tiles.refine_bands(bands, pixels, PUBLISHED_CRF if crf is True else crf)
        else:
            refined = ((top, p.max(0).indices.to(torch.uint8).numpy(), p) for top, p in bands)
        for top, band, p in refined:
            rows = slice(top, top + len(band))
            labels[rows] = lut[band]
            confidence[rows] = p.gather(0, torch.from_numpy(band.astype(np.int64))[None])[0].numpy()  # [h, W]
        return Prediction(pixels, labels, confidence, self.names, self.colours, self.detect(pixels))

    def merge(self, p: Tensor) -> Tensor:
        """[C, h, W]: probabilities of merged clusters are added to those of their targets, in place."""
        for k, entry in self.clusters.entries.items():
            if entry.merge is not None:
                p[entry.merge] += p[k + 1]
                p[k + 1] = 0
        return p

    def detect(self, pixels: np.ndarray) -> list[Detection]:
        """Detections with labels as categories. Those of clusters that are ignored or merged into background are dropped."""
        if self.detector is None:
            return []
        size, lut = pixels.shape[:2], self.clusters.label_lut()
        scale = min(1.0, (DETECT_PIXELS / (size[0] * size[1])) ** 0.5)
        small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else pixels
        x = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].to(self.device)  # [1, 3, h, w]
        with tiles.NETWORK_LOCK:
            detections = detector.detect_batch(self.detector, x, [1])[0]
        labelled = [replace(d, category_id=int(lut[d.category_id + 1])) for d in detections]
        kept = [d for d in labelled if d.category_id not in (0, IGNORE_LABEL)]
        return [enlarge(d, size) for d in kept] if scale < 1 else kept


def load(
    path: str | Path,
    clusters: str | Path | None = None,
    detector_path: str | Path | bool | None = None,
    detect: Detect | None = None,
    device: str | None = None,
    input_size: str | int | None = None,
) -> Predictor:
    """Load a segmenter of unseg.

    A model that was trained in bf16 runs in bf16 on devices with bfloat16 units, and in fp32 elsewhere.

    Args:
        path: e.g. models/segmenter-r0.safetensors; or what `unseg push` wrote: hf://owner/name, hf://owner/name@revision (a
            branch, a tag or a commit), which is downloaded to the hub's cache, or a folder. Those have clusters and input size.
        clusters: a clusters.yaml with names, colours, merges and ignored clusters.
        detector_path: e.g. models/detector.safetensors, to detect instances too; `detect` has its settings. True: the detector
            of what `unseg push` wrote, with its settings.
        device: cpu, cuda or mps; None: UNSEG_DEVICE, or the best available.
        input_size: how a photograph is resized for the network: "original" (not at all; the paper), "square" (to the
            training size; the published code), or the pixels of its shorter side. None: as stored in the file; else as in
            params.yaml, if the file is in models/ of a run; else "original".

    Raises:
        InputError: a missing file, a file of another kind or version, clusters that the model does not have, a detector
            with other clusters than the segmenter, a device that is missing or too small, or a hub that does not answer.
    """
    if repository.is_named(path):
        found = repository.read(path, detector_path is True)
        trained_detector = found.detector if detector_path is True else detector_path
        size = found.input_size if input_size is None else input_size
        return load(found.model, clusters or found.clusters, trained_detector, detect or found.detect, device, size)
    if detector_path is True:
        raise InputError(f"{path} is a file without a detector; name the file of one")
    net = segmenter.load(path)
    net = replace(net, precision=portable(net.precision))
    names = add_names(naming.read(clusters, net.labels - 1) if clusters else naming.ClusterNames(net.labels - 1), net)
    if input_size is None:
        folder = Path(path).resolve().parent
        input_size = net.input_size or (Run(folder.parent).input_size if folder.name == "models" else "original")
    if not (input_size in ("original", "square") or (isinstance(input_size, int) and input_size > 0)):
        raise InputError(f"the input size is {input_size!r}; it must be original, square, or the pixels of the shorter side")
    target = environment.device(device)
    try:
        net.model.to(target)
    except RuntimeError as error:  # e.g. out of memory
        raise InputError(f"{path} cannot be moved to {target} ({str(error).splitlines()[0]}); try cpu") from None
    trained = None
    if detector_path:
        trained = detector.load(detector_path, detect or Detect(800, 0.05, 0.5, 100, DETECT_PIXELS))
        if net.names or trained.k + 1 != net.labels:
            raise InputError(f"{detector_path} detects clusters that {path} does not label; predict without instances")
        trained.model.to(target)
        trained = replace(trained, p=replace(trained.p, precision=portable(trained.p.precision)))
    return Predictor(net, names, overlay.colour_table(names), target, input_size, trained)


def add_names(clusters: naming.ClusterNames, net: TrainedSegmenter) -> naming.ClusterNames:
    """The clusters, with the names that the model's file has for those without one."""
    names = {k: clusters.entry(k).name or name for k, name in enumerate(net.names[1:])}
    return replace(clusters, entries=clusters.entries | {k: replace(clusters.entry(k), name=name) for k, name in names.items()})


def enlarge(detection: Detection, size: tuple[int, int]) -> Detection:
    """A detection on a reduced photograph, scaled to the photograph's size (H, W)."""
    mask = detection.mask.decode()
    whole = cv2.resize(mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
    sx, sy = size[1] / mask.shape[1], size[0] / mask.shape[0]
    x, y, w, h = detection.bbox
    bbox = round(x * sx, 2), round(y * sy, 2), round(w * sx, 2), round(h * sy, 2)
    return replace(detection, mask=masks.encode(whole > 0), bbox=bbox)


def open_photo(photo: Photo) -> Pillow.Image:
    """The photograph as 8-bit RGB, upright. Raises InputError."""
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
            raise InputError(f"the array is {photo.dtype} {list(photo.shape)}; a photograph must be uint8 [H, W, 3], RGB")
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
