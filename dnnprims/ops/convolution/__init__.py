"""Convolutions, their gradients, and the transposed convolution.

Front ends and plans are in `forward`, `backward` and `transposed`, the shapes in `geometry`. Each algorithm has a file
of its own, `product` says what it is told and answers, and `algorithms` chooses.
"""

from __future__ import annotations

from .algorithms import ALGORITHMS
from .backward import (
    conv_backward_bias,
    conv_backward_data,
    conv_backward_filter,
    plan_conv_backward_bias,
    plan_conv_backward_data,
    plan_conv_backward_filter,
)
from .bias import BIAS_FAMILY
from .depthwise import DEPTHWISE_FAMILY
from .direct import FAMILY
from .first import FIRST_FAMILY
from .forward import conv_forward, conv_output_descriptor, plan_conv_forward
from .hopper import CONV_HOPPER_FAMILY
from .hopper_filter import CONV_HOPPER_FILTER_FAMILY
from .hopper_first import CONV_HOPPER_FIRST_FAMILY
from .hopper_first_filter import CONV_HOPPER_FIRST_FILTER_FAMILY
from .hopper_patch import CONV_PATCH_FAMILY
from .hopper_rows import CONV_ROWS_FAMILY
from .hopper_split import CONV_HOPPER_SPLIT_FAMILY
from .hopper_turned import CONV_HOPPER_TURNED_FAMILY
from .implicit import IMPLICIT_FAMILY, MMA_FAMILY
from .joined import JOINED_FAMILY
from .relaid import LAYOUT_FAMILY
from .transposed import (
    conv_transpose_backward,
    conv_transpose_forward,
    plan_conv_transpose_backward,
    plan_conv_transpose_forward,
)

__all__ = [
    "ALGORITHMS",
    "BIAS_FAMILY",
    "DEPTHWISE_FAMILY",
    "CONV_HOPPER_FAMILY",
    "CONV_HOPPER_FILTER_FAMILY",
    "CONV_HOPPER_FIRST_FAMILY",
    "CONV_HOPPER_FIRST_FILTER_FAMILY",
    "CONV_HOPPER_SPLIT_FAMILY",
    "CONV_HOPPER_TURNED_FAMILY",
    "CONV_PATCH_FAMILY",
    "CONV_ROWS_FAMILY",
    "FAMILY",
    "FIRST_FAMILY",
    "IMPLICIT_FAMILY",
    "JOINED_FAMILY",
    "LAYOUT_FAMILY",
    "MMA_FAMILY",
    "conv_backward_bias",
    "conv_backward_data",
    "conv_backward_filter",
    "conv_forward",
    "conv_output_descriptor",
    "conv_transpose_backward",
    "conv_transpose_forward",
    "plan_conv_backward_bias",
    "plan_conv_backward_data",
    "plan_conv_backward_filter",
    "plan_conv_forward",
    "plan_conv_transpose_backward",
    "plan_conv_transpose_forward",
]
