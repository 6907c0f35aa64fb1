"""Batch normalisation: over what the statistics are taken, and which conventions hold."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..errors import BadParamError
from .finite import finite_number
from .spatial import LAYOUTS

BATCHNORM_MODES = ("spatial", "per_activation")
RUNNING_VARIANCES = ("unbiased", "biased")

_CHOICES = {"mode": BATCHNORM_MODES, "layout": LAYOUTS, "running_variance": RUNNING_VARIANCES}


@dataclass(frozen=True, repr=False)
class BatchNormDescriptor:
    """Over what a batch norm takes its statistics, and which conventions hold.

    Parameters
    ----------
    mode : str
        ``spatial``: one mean and variance for each channel, over batch and image; parameters are of shape (c,).
        ``per_activation``: one for each element of an image, over the batch; parameters are of an image's shape.
    layout : str
        ``NCHW``: channels before the spatial axes; ``NHWC``: channels last. Of no meaning for ``per_activation``.
    epsilon : float
        Added to the variance under the root, at least 0.
    running_variance : str
        What the running variance averages: ``unbiased``, over m - 1 of m elements, as PyTorch and cuDNN have it, or
        ``biased``, over m. Elements are always normalised with the biased one.

    Raises
    ------
    BadParamError
        A value is not one of those above.

    Examples
    --------
    >>> BatchNormDescriptor(layout="NHWC")
    BatchNormDescriptor(layout='NHWC')
    """

    mode: str = "spatial"
    layout: str = "NCHW"
    epsilon: float = 1e-5
    running_variance: str = "unbiased"

    def __post_init__(self) -> None:
        op = "BatchNormDescriptor"
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if not isinstance(value, str) or value not in allowed:
                rule = "one of " + ", ".join(allowed)
                raise BadParamError(op, "is unknown", param=name, got=f"{value!r:.80}", expected=rule)
        object.__setattr__(self, "epsilon", finite_number(op, "epsilon", self.epsilon))
        if self.epsilon < 0:
            raise BadParamError(op, "is out of range", param="epsilon", got=self.epsilon, expected=">= 0")

    @property
    def channels_last(self) -> bool:
        """Whether channels lie behind the spatial axes."""
        return self.layout == "NHWC"

    def __repr__(self) -> str:
        given = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"BatchNormDescriptor({', '.join(given)})"


def create_batchnorm_descriptor(
    mode: str = "spatial", layout: str = "NCHW", epsilon: Any = 1e-5, running_variance: str = "unbiased"
) -> BatchNormDescriptor:
    """Return `BatchNormDescriptor(mode, layout, ...)`, for those who come from cuDNN."""
    return BatchNormDescriptor(mode, layout, epsilon, running_variance)
