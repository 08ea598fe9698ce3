"""Which methods a CRF can have, and whether one is here: asked before there is any work, without importing it."""

from importlib.util import find_spec

from unseg.console import InputError

METHODS = ("dense", "conv")


def check(method: str) -> None:
    """Raises: InputError, where pydensecrf is asked for and not installed."""
    if method == "dense" and find_spec("pydensecrf") is None:
        raise InputError(
            "crf.method is dense, and pydensecrf is not installed; pip install pydensecrf2==1.1 (it needs g++ and Python 3.12 "
            "or older), or set crf.method: conv"
        )
