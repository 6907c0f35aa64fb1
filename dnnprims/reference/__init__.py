"""NumPy references: pure functions, float64 inside, rounded once at the end. Also the backend without a GPU."""

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

__all__ = [
    "activation",
    "adam",
    "batchnorm",
    "convolution",
    "fc",
    "glu",
    "gradient",
    "loss",
    "maxout",
    "pooling",
    "prelu",
    "reduction",
    "sgd",
    "softmax",
    "tensor",
]
