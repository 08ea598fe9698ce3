"""Which backends a detector can have, and whether one is here: asked before there is any work, without importing it."""

from importlib.util import find_spec

from unseg.console import InputError

BACKENDS = ("torchvision", "detectron2")


def check(backend: str) -> None:
    """Raises: InputError, where Detectron2 is asked for and not installed. (What it needs itself is seen when it is imported.)"""
    if backend == "detectron2" and find_spec("detectron2") is None:
        raise missing("detectron2")


def missing(package: str) -> InputError:
    return InputError(
        f"detector.backend is detectron2, and {package} is not installed; install Detectron2 by its own instructions "
        "(docs/papers.md), or set detector.backend: torchvision"
    )
