"""Videos by OpenCV: frames in and out.

Shapes: H rows, W columns of a frame; uint8 RGB.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from unseg.core.console import InputError

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # the reader says what there is to say
SUFFIXES = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"}


class Reader:
    """The frames of a video, upright. Raises: InputError, where none can be decoded."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.source = cv2.VideoCapture(str(path))
        if not self.source.isOpened() or not self.source.grab():
            raise InputError(f"{path} cannot be decoded as a video; give one that OpenCV reads, e.g. MP4 with H.264")
        self.source.release()
        self.source = cv2.VideoCapture(str(path))
        self.rate = self.source.get(cv2.CAP_PROP_FPS) or 25.0  # frames a second
        self.count = max(1, int(self.source.get(cv2.CAP_PROP_FRAME_COUNT)))  # as the header says; may be wrong

    def __iter__(self) -> Iterator[np.ndarray]:
        """[H, W, 3], one frame after another."""
        while True:
            there, frame = self.source.read()
            if not there:
                self.source.release()
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


class Writer:
    """An MP4 of pictures that all have the size of the first; sides are cut to even numbers, which the codec wants."""

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, rate
        self.sink: cv2.VideoWriter | None = None

    def __enter__(self) -> "Writer":
        return self

    def write(self, picture: np.ndarray) -> None:
        """[H, W, 3]. Raises: InputError, where this OpenCV cannot write MP4."""
        height, width = (n // 2 * 2 for n in picture.shape[:2])
        if self.sink is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.sink = cv2.VideoWriter(str(self.path), cv2.VideoWriter.fourcc(*"mp4v"), self.rate, (width, height))
            if not self.sink.isOpened():
                raise InputError(f"{self.path}: this OpenCV cannot write MP4; give photographs instead of a video")
        self.sink.write(cv2.cvtColor(np.ascontiguousarray(picture[:height, :width]), cv2.COLOR_RGB2BGR))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.sink is not None:
            self.sink.release()
