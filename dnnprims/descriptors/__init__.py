"""What is wanted, as immutable values: tensors, activations, losses, convolutions, poolings, batch norms.

A descriptor is validated when it is made, is hashable, and its `repr` can be pasted back.
"""

from __future__ import annotations

from .activation import ACTIVATION_MODES, ActivationDescriptor, as_activation, create_activation_descriptor
from .batchnorm import BATCHNORM_MODES, RUNNING_VARIANCES, BatchNormDescriptor, create_batchnorm_descriptor
from .convolution import CONVOLUTION_MODES, ConvolutionDescriptor, create_convolution_descriptor
from .loss import LOSS_KINDS, REDUCTIONS, LossDescriptor, as_loss, create_loss_descriptor
from .pooling import POOLING_MODES, PoolingDescriptor, create_pooling_descriptor
from .spatial import LAYOUTS
from .tensor import BoundTensor, TensorDescriptor, create_tensor_descriptor, dense_strides, dtype_row

__all__ = [
    "ACTIVATION_MODES",
    "BATCHNORM_MODES",
    "CONVOLUTION_MODES",
    "LAYOUTS",
    "LOSS_KINDS",
    "POOLING_MODES",
    "REDUCTIONS",
    "RUNNING_VARIANCES",
    "ActivationDescriptor",
    "BatchNormDescriptor",
    "BoundTensor",
    "ConvolutionDescriptor",
    "LossDescriptor",
    "PoolingDescriptor",
    "TensorDescriptor",
    "as_activation",
    "as_loss",
    "create_activation_descriptor",
    "create_batchnorm_descriptor",
    "create_convolution_descriptor",
    "create_loss_descriptor",
    "create_pooling_descriptor",
    "create_tensor_descriptor",
    "dense_strides",
    "dtype_row",
]
