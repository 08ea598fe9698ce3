"""A folder of unlabelled photographs in, a semantic segmentation model out."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unseg.serving.api import Prediction, Predictor, load

__all__ = ["Prediction", "Predictor", "load"]


def __getattr__(name: str) -> Any:
    """What `unseg.serving.api` has, fetched when it is asked for: stages that need no torch import this package too."""
    if name in __all__:
        from unseg.serving import api

        return getattr(api, name)
    raise AttributeError(f"module 'unseg' has no attribute {name!r}")
