"""Checks that an optional package is installed, before any work and without importing it."""

from importlib.util import find_spec

from unseg.core.console import InputError


def check_detector_backend(backend: str) -> None:
    """Raises InputError if Detectron2 is chosen and not installed. Its own requirements are checked on import."""
    if backend == "detectron2" and find_spec("detectron2") is None:
        raise detectron2_missing("detectron2")


def detectron2_missing(package: str) -> InputError:
    return InputError(
        f"detector.backend is detectron2, and {package} is not installed; install Detectron2 by its own instructions "
        "(docs/papers.md), or set detector.backend: torchvision"
    )


def check_crf_method(method: str) -> None:
    """Raises InputError if pydensecrf is chosen and not installed."""
    if method == "dense" and find_spec("pydensecrf") is None:
        raise InputError(
            "crf.method is dense, and pydensecrf is not installed; pip install pydensecrf2==1.1 (it needs g++ and Python 3.12 "
            "or older), or set crf.method: conv"
        )


def check_extra(extra: str, *packages: str) -> None:
    """Raises InputError if a package of an extra of pyproject.toml is not installed."""
    for name in packages:
        if find_spec(name) is None:
            raise InputError(f"{name} is not installed; install it with `pip install '.[{extra}]'` in a clone of unseg")
