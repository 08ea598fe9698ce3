"""Unsupervised semantic segmentation: train a model from a folder of unlabelled photographs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unseg.serving.api import Prediction, Predictor, load

__all__ = ["Prediction", "Predictor", "load"]


def __getattr__(name: str) -> Any:
    """Import `unseg.serving.api` on first use, because it imports torch and most stages do not need it."""
    if name in __all__:
        from unseg.serving import api

        return getattr(api, name)
    raise AttributeError(f"module 'unseg' has no attribute {name!r}")
