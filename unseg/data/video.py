"""Videos by OpenCV. Shapes: H rows, W columns of a frame; uint8 RGB."""

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from unseg.core.console import InputError

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # the reader reports errors itself
SUFFIXES = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"}


class Reader:
    """The frames of a video, upright. Raises InputError if none can be decoded."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.source = cv2.VideoCapture(str(path))
        if not self.source.isOpened() or not self.source.grab():
            raise InputError(f"{path} cannot be decoded as a video; give one that OpenCV reads, e.g. MP4 with H.264")
        self.source.release()
        self.source = cv2.VideoCapture(str(path))
        self.rate = self.source.get(cv2.CAP_PROP_FPS) or 25.0  # frames per second
        self.count = max(1, int(self.source.get(cv2.CAP_PROP_FRAME_COUNT)))  # from the header; may be wrong

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames [H, W, 3]."""
        while True:
            decoded, frame = self.source.read()
            if not decoded:
                self.source.release()
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


class Writer:
    """An MP4 whose frames have the size of the first; odd sides lose a pixel, because the codec needs even ones."""

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, rate
        self.sink: cv2.VideoWriter | None = None

    def __enter__(self) -> "Writer":
        return self

    def write(self, picture: np.ndarray) -> None:
        """[H, W, 3]. Raises InputError if this OpenCV cannot write MP4."""
        height, width = (n // 2 * 2 for n in picture.shape[:2])
        if self.sink is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.sink = cv2.VideoWriter(str(self.path), cv2.VideoWriter.fourcc(*"mp4v"), self.rate, (width, height))
            if not self.sink.isOpened():
                raise InputError(f"{self.path}: this OpenCV cannot write MP4; give photographs instead of a video")
        self.sink.write(cv2.cvtColor(np.ascontiguousarray(picture[:height, :width]), cv2.COLOR_RGB2BGR))

    def __exit__(self, *_: object) -> None:
        if self.sink is not None:
            self.sink.release()
