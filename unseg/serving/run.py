"""The files of a run: the folder in which `dvc repro` ran."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from unseg.core import params
from unseg.core.console import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """A run's folder."""

    root: Path

    def __truediv__(self, name: str) -> Path:
        return self.root / name

    @property
    def params(self) -> Path:
        return self.root / params.FILE

    def value(self, key: str, kind: type[T]) -> T:
        return params.value(key, kind, self.params)

    def group(self, key: str, kind: type[T]) -> T:
        return params.group(key, kind, self.params)

    @property
    def input_size(self) -> str:
        """predict.input of params.yaml, or "original" without params.yaml."""
        return self.value("predict.input", str) if self.params.exists() else "original"

    @property
    def segmenter(self) -> Path:
        """The final segmenter. Raises InputError if there is none yet."""
        if not self.params.exists():
            raise InputError(f"{self.params}: no such file; name the folder of a run, or a model by --model")
        path = self.root / f"models/segmenter-{self.value('final', str)}.safetensors"
        if not path.exists():
            raise InputError(f"{path}: no such file; make it with `dvc repro`, or name a model by --model")
        return path

    @property
    def detector(self) -> Path:
        """The detector behind the detections that the run uses."""
        return self.root / f"models/{self.value('detections', str).replace('detections', 'detector', 1)}.safetensors"
