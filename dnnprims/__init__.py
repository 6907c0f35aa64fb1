"""Deep-learning primitives for CuPy arrays: the open counterpart of cuDNN.

Create a handle, describe what is wanted, call a primitive::

    handle = create_handle()
    y = softmax_forward(handle, handle.asarray(x), axis=-1)

Importing needs NumPy alone and touches no GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .creation import create_handle
from .descriptors import (
    ActivationDescriptor,
    BatchNormDescriptor,
    BoundTensor,
    ConvolutionDescriptor,
    LossDescriptor,
    PoolingDescriptor,
    TensorDescriptor,
    create_activation_descriptor,
    create_batchnorm_descriptor,
    create_convolution_descriptor,
    create_loss_descriptor,
    create_pooling_descriptor,
    create_tensor_descriptor,
)
from .errors import (
    AllocationError,
    BadParamError,
    CompileError,
    DnnprimsError,
    ExecutionError,
    NotSupportedError,
)
from .handle import Handle
from .ops.activation import activation_backward, activation_forward, backward_needs
from .ops.adam import adam_update, adamw_update
from .ops.batchnorm import batchnorm_backward, batchnorm_forward_inference, batchnorm_forward_training
from .ops.convolution import (
    conv_backward_bias,
    conv_backward_data,
    conv_backward_filter,
    conv_forward,
    conv_output_descriptor,
    conv_transpose_backward,
    conv_transpose_forward,
)
from .ops.fc import (
    fc_backward,
    fc_backward_bias,
    fc_backward_data,
    fc_backward_needs,
    fc_backward_weights,
    fc_forward,
)
from .ops.glu import glu_backward, glu_forward
from .ops.gradient import clip_by_global_norm, global_norm, scale_and_check_finite
from .ops.loss import loss_backward, loss_forward, loss_forward_backward
from .ops.maxout import maxout_backward, maxout_forward
from .ops.pooling import pooling_backward, pooling_forward, pooling_output_descriptor
from .ops.prelu import prelu_backward, prelu_forward
from .ops.reduction import reduce_tensor
from .ops.sgd import sgd_update
from .ops.softmax import softmax_backward, softmax_forward
from .ops.tensor import add_tensor, cast, scale_tensor, set_tensor
from .planning import Support, output_descriptors, supports, variants, workspace_size
from .prepared import PreparedPlan, prepare
from .runtime.tuning import Tuning

__version__ = "0.1.0"

#: Every primitive: a function whose first argument is a handle.
PRIMITIVES: tuple[Callable[..., Any], ...] = (
    fc_forward,
    fc_backward,
    fc_backward_data,
    fc_backward_weights,
    fc_backward_bias,
    conv_forward,
    conv_backward_data,
    conv_backward_filter,
    conv_backward_bias,
    conv_transpose_forward,
    conv_transpose_backward,
    pooling_forward,
    pooling_backward,
    batchnorm_forward_training,
    batchnorm_forward_inference,
    batchnorm_backward,
    activation_forward,
    activation_backward,
    prelu_forward,
    prelu_backward,
    maxout_forward,
    maxout_backward,
    glu_forward,
    glu_backward,
    softmax_forward,
    softmax_backward,
    loss_forward,
    loss_backward,
    loss_forward_backward,
    sgd_update,
    adam_update,
    adamw_update,
    global_norm,
    clip_by_global_norm,
    scale_and_check_finite,
    set_tensor,
    scale_tensor,
    add_tensor,
    cast,
    reduce_tensor,
)

__all__ = [
    "ActivationDescriptor",
    "AllocationError",
    "BadParamError",
    "BatchNormDescriptor",
    "BoundTensor",
    "CompileError",
    "ConvolutionDescriptor",
    "DnnprimsError",
    "ExecutionError",
    "Handle",
    "LossDescriptor",
    "NotSupportedError",
    "PRIMITIVES",
    "PoolingDescriptor",
    "PreparedPlan",
    "Support",
    "TensorDescriptor",
    "Tuning",
    "activation_backward",
    "activation_forward",
    "adam_update",
    "adamw_update",
    "add_tensor",
    "backward_needs",
    "batchnorm_backward",
    "batchnorm_forward_inference",
    "batchnorm_forward_training",
    "cast",
    "clip_by_global_norm",
    "conv_backward_bias",
    "conv_backward_data",
    "conv_backward_filter",
    "conv_forward",
    "conv_output_descriptor",
    "conv_transpose_backward",
    "conv_transpose_forward",
    "create_activation_descriptor",
    "create_batchnorm_descriptor",
    "create_convolution_descriptor",
    "create_handle",
    "create_loss_descriptor",
    "create_pooling_descriptor",
    "create_tensor_descriptor",
    "fc_backward",
    "fc_backward_bias",
    "fc_backward_data",
    "fc_backward_needs",
    "fc_backward_weights",
    "fc_forward",
    "global_norm",
    "glu_backward",
    "glu_forward",
    "loss_backward",
    "loss_forward",
    "loss_forward_backward",
    "maxout_backward",
    "maxout_forward",
    "output_descriptors",
    "pooling_backward",
    "pooling_forward",
    "pooling_output_descriptor",
    "prelu_backward",
    "prelu_forward",
    "prepare",
    "reduce_tensor",
    "scale_and_check_finite",
    "scale_tensor",
    "set_tensor",
    "sgd_update",
    "softmax_backward",
    "softmax_forward",
    "supports",
    "variants",
    "workspace_size",
]
