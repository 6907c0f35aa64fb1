"""Front ends: one module a family, each with its checks, its plans and its kernels' instantiations."""

from __future__ import annotations

from ..runtime.gemm import GEMM_FAMILY
from ..runtime.launch import Family
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

#: Every family of kernels by name.
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        activation.FAMILY,
        adam.FAMILY,
        batchnorm.FAMILY,
        convolution.BIAS_FAMILY,
        convolution.DEPTHWISE_FAMILY,
        convolution.FAMILY,
        convolution.FIRST_FAMILY,
        convolution.IMPLICIT_FAMILY,
        convolution.JOINED_FAMILY,
        convolution.LAYOUT_FAMILY,
        convolution.MMA_FAMILY,
        convolution.CONV_HOPPER_FAMILY,
        convolution.CONV_HOPPER_FILTER_FAMILY,
        convolution.CONV_HOPPER_FIRST_FAMILY,
        convolution.CONV_HOPPER_FIRST_FILTER_FAMILY,
        convolution.CONV_HOPPER_SPLIT_FAMILY,
        convolution.CONV_HOPPER_TURNED_FAMILY,
        convolution.CONV_PATCH_FAMILY,
        convolution.CONV_ROWS_FAMILY,
        fc.FC_FAMILY,
        fc.FC_FEW_OUTPUTS_FAMILY,
        fc.FC_FEW_ROWS_FAMILY,
        fc.FC_HOPPER_FAMILY,
        GEMM_FAMILY,
        glu.FAMILY,
        gradient.FAMILY,
        loss.FAMILY,
        maxout.FAMILY,
        pooling.FAMILY,
        prelu.FAMILY,
        reduction.FAMILY,
        sgd.FAMILY,
        softmax.FAMILY,
        tensor.FAMILY,
    )
}
