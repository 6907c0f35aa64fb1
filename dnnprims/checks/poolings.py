"""What poolings ask for beyond shapes: a descriptor, windows that fit the image, indices that name a tap."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..descriptors import PoolingDescriptor
from ..errors import BadParamError
from .refusals import require_none_bad


def require_pooling(op: str, pooling: object) -> PoolingDescriptor:
    """`pooling` is a PoolingDescriptor."""
    if isinstance(pooling, PoolingDescriptor):
        return pooling
    got, rule = f"{type(pooling).__name__} {pooling!r:.60}", "a PoolingDescriptor"
    raise BadParamError(op, "is no pooling", param="pooling", got=got, expected=rule)


def require_pool(op: str, param: str, axis: int, window: int, image: int, padded: int) -> None:
    """The image has an element along the axis, and with its padding is no smaller than the window."""
    if image == 0 or window > padded:
        raise BadParamError(
            op,
            "is smaller than the window",
            param=param,
            got=f"extent {image}, with its padding {padded}, along spatial axis {axis}",
            expected=f"an element, and at least {window} with the padding",
        )


def require_indexed(op: str, pooling: PoolingDescriptor, wanted: bool) -> None:
    """A mean has no indices."""
    if wanted and pooling.mode != "max":
        rule = "False and no indices: only a maximum has them"
        raise BadParamError(op, "is not taken", param="with_indices", got=f"mode {pooling.mode!r}", expected=rule)


def require_taps_named(op: str, indices: Any, taps: int) -> None:
    """Indices on the host lie in [0, taps)."""
    given = np.asarray(indices)
    bad = given[(given < 0) | (given >= taps)]
    hint = "pass what pooling_forward gave back"
    require_none_bad(op, "indices", bad, "has an index out of range", f"in [0, {taps})", hint)
