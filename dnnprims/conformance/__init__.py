"""Cases, derived error bounds and their runner: what ``python -m dnnprims verify`` and the tests run.

A family of cases is one module: how the data of each primitive are drawn and its error bounded, the corner cases, and a
generator of random ones.
"""

from __future__ import annotations

from . import (
    activation,
    adam,
    batchnorm,
    convolution,
    fc,
    glu,
    gradient,
    loss,
    maxout,
    pooling,
    prelu,
    reduction,
    sgd,
    softmax,
    tensor,
)
from .cases import CaseFamily

_MODULES = (
    activation,
    prelu,
    maxout,
    glu,
    softmax,
    loss,
    fc,
    convolution,
    pooling,
    batchnorm,
    reduction,
    tensor,
    gradient,
    sgd,
    adam,
)

#: Every family of cases, by name.
FAMILIES: dict[str, CaseFamily] = {module.FAMILY.name: module.FAMILY for module in _MODULES}
