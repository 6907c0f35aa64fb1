"""Deep-learning primitives for CuPy: the open counterpart of cuDNN."""

from __future__ import annotations

from .descriptors import (
    ActivationDescriptor,
    BoundTensor,
    LossDescriptor,
    TensorDescriptor,
    create_activation_descriptor,
    create_loss_descriptor,
    create_tensor_descriptor,
)
from .errors import AllocationError, BadParamError, CompileError, DnnprimsError, ExecutionError, NotSupportedError
from .handle import Handle, create_handle
from .planning import PreparedPlan, Support, output_descriptors, prepare, supports, workspace_size

__version__ = "0.1.0"
