"""What is wanted, as immutable values: tensors, activations, losses.

A descriptor is validated when it is made, is hashable, and its `repr` can be pasted back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite, prod
from typing import Any

from .dtypes import BY_NAME, BY_NUMPY, DType
from .errors import BadParamError


def dtype_row(dtype: object, op: str = "TensorDescriptor") -> DType:
    """Return the row of the dtype table for a name, a NumPy dtype, a scalar type or a row."""
    if isinstance(dtype, DType):
        return dtype
    if isinstance(dtype, str) and dtype in BY_NAME:
        return BY_NAME[dtype]
    try:
        import numpy as np

        return BY_NUMPY[np.dtype(dtype)]  # type: ignore[call-overload]
    except (TypeError, KeyError):
        raise BadParamError(
            op, "is not an element type of this library", param="dtype", got=dtype, expected=", ".join(BY_NAME)
        ) from None


def dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a row-major array of this shape."""
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= max(extent, 1)
    return tuple(reversed(strides))


@dataclass(frozen=True, slots=True)
class TensorDescriptor:
    """Shape, element type and strides of a tensor.

    Parameters
    ----------
    shape : tuple of int
        Extents; 0 is allowed, and `()` is a scalar.
    dtype : str or dtype
        Element type: ``float32``, ``float64``, ``float16``, ``bfloat16``, ``int32``, ``int64``, ``uint8``.
    strides : tuple of int, optional
        Steps in elements (not bytes); row-major where left out.
    alignment : int, optional
        Bytes, a power of two up to 16, that the address is a multiple of. 16 where left out, as allocators give.

    Raises
    ------
    BadParamError
        An extent is negative or no integer, or the strides have another length than the shape.
    """

    shape: tuple[int, ...]
    dtype: DType
    strides: tuple[int, ...]
    alignment: int = 16

    def __init__(
        self,
        shape: tuple[int, ...] | list[int] | int,
        dtype: object,
        strides: tuple[int, ...] | None = None,
        alignment: int = 16,
    ) -> None:
        extents = (shape,) if isinstance(shape, int) else tuple(shape)
        for extent in extents:
            if not hasattr(extent, "__index__") or extent < 0 or isinstance(extent, bool):
                raise BadParamError(
                    "TensorDescriptor", "has a bad extent", param="shape", got=shape, expected="integers >= 0"
                )
        extents = tuple(int(extent) for extent in extents)
        steps = dense_strides(extents) if strides is None else tuple(int(step) for step in strides)
        if len(steps) != len(extents):
            raise BadParamError(
                "TensorDescriptor",
                "has the wrong length",
                param="strides",
                got=strides,
                expected=f"{len(extents)} steps",
            )
        if alignment not in (1, 2, 4, 8, 16):
            raise BadParamError(
                "TensorDescriptor",
                "is no alignment",
                param="alignment",
                got=alignment,
                expected="1, 2, 4, 8 or 16 bytes",
            )
        object.__setattr__(self, "shape", extents)
        object.__setattr__(self, "dtype", dtype_row(dtype))
        object.__setattr__(self, "strides", steps)
        object.__setattr__(self, "alignment", alignment)

    @classmethod
    def from_array(cls, x: Any) -> TensorDescriptor:
        """Describe a NumPy or CuPy array, or anything with `shape`, `dtype` and byte `strides`."""
        row = dtype_row(x.dtype)
        if any(step % row.itemsize for step in x.strides):
            raise BadParamError(
                "TensorDescriptor",
                "are no whole elements",
                param="strides",
                got=f"{x.strides} bytes",
                expected=f"multiples of {row.itemsize} bytes, the size of {row.name}",
                hint="pass a contiguous copy",
            )
        return cls(x.shape, row, tuple(step // row.itemsize for step in x.strides))

    def bind(self, pointer: int, owner: object = None) -> BoundTensor:
        """Name memory that is no array: an address on the handle's device, with this layout.

        `owner` is kept alive as long as the bound tensor is. That the memory is as large as described is not checked.
        """
        return BoundTensor(self, int(pointer), owner)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.size * self.dtype.itemsize

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie row-major without gaps; strides of axes of extent 1 do not matter."""
        if self.size == 0:
            return True
        dense = dense_strides(self.shape)
        return all(e == 1 or s == d for e, s, d in zip(self.shape, self.strides, dense, strict=True))

    @property
    def vectorizable(self) -> bool:
        """Whether 16-byte accesses from the first element on are allowed."""
        return self.alignment == 16

    def __repr__(self) -> str:
        strides = "" if self.contiguous else f", strides={self.strides}"
        alignment = "" if self.alignment == 16 else f", alignment={self.alignment}"
        return f"TensorDescriptor({self.shape}, '{self.dtype.name}'{strides}{alignment})"


@dataclass(frozen=True, slots=True, eq=False)
class BoundTensor:
    """Memory at an address, described; accepted wherever an array is. Made by `TensorDescriptor.bind`."""

    descriptor: TensorDescriptor
    pointer: int
    owner: object = field(default=None, repr=False)


#: Mode -> its parameters with their defaults, in the order in which the kernels take them.
ACTIVATION_MODES: dict[str, dict[str, float]] = {
    "identity": {},
    "relu": {},
    "clipped_relu": {"ceiling": 6.0},
    "leaky_relu": {"slope": 0.01},
    "threshold": {"threshold": 0.0, "value": 0.0},
    "elu": {"alpha": 1.0},
    "celu": {"alpha": 1.0},
    "selu": {},
    "sigmoid": {},
    "log_sigmoid": {},
    "tanh": {},
    "softplus": {"beta": 1.0, "threshold": 20.0},
    "softsign": {},
    "tanhshrink": {},
    "softshrink": {"lambd": 0.5},
    "hardshrink": {"lambd": 0.5},
    "gelu": {},
    "gelu_tanh": {},
    "swish": {"beta": 1.0},
    "mish": {},
    "hard_sigmoid": {"slope": 1.0 / 6.0, "offset": 0.5},
    "hard_tanh": {"low": -1.0, "high": 1.0},
    "hard_swish": {},
    "squared_relu": {},
    "abs": {},
    "square": {},
    "sqrt": {},
    "exp": {},
    "log": {},
}

#: (mode, parameter) -> (rule in words, test).
_ACTIVATION_RULES: dict[tuple[str, str], tuple[str, Callable[[float], bool]]] = {
    ("clipped_relu", "ceiling"): ("> 0", lambda v: v > 0),
    ("celu", "alpha"): ("!= 0", lambda v: v != 0),
    ("softplus", "beta"): ("> 0", lambda v: v > 0),
    ("softshrink", "lambd"): (">= 0", lambda v: v >= 0),
    ("hardshrink", "lambd"): (">= 0", lambda v: v >= 0),
}


@dataclass(frozen=True)
class ActivationDescriptor:
    """An elementwise function and its parameters.

    Parameters
    ----------
    mode : str
        A key of `ACTIVATION_MODES`.
    **parameters : float
        The parameters of that mode; those left out take their default.

    Raises
    ------
    BadParamError
        The mode is unknown, a parameter is not one of the mode's, or its value breaks the mode's rule.

    Examples
    --------
    >>> ActivationDescriptor("leaky_relu", slope=0.2)
    ActivationDescriptor('leaky_relu', slope=0.2)
    """

    mode: str
    parameters: tuple[tuple[str, float], ...]

    def __init__(self, mode: str, **parameters: float) -> None:
        if not isinstance(mode, str) or mode not in ACTIVATION_MODES:
            raise BadParamError(
                "ActivationDescriptor",
                "is unknown",
                param="mode",
                got=repr(mode),
                expected="one of " + ", ".join(ACTIVATION_MODES),
            )
        values = dict(ACTIVATION_MODES[mode])
        for name, value in parameters.items():
            if name not in values:
                allowed = ", ".join(values) or "no parameter"
                raise BadParamError(
                    "ActivationDescriptor", f"is not a parameter of {mode}", param=name, got=value, expected=allowed
                )
            values[name] = _finite("ActivationDescriptor", name, value)
            rule, holds = _ACTIVATION_RULES.get((mode, name), ("", _anything))
            if not holds(values[name]):
                raise BadParamError(
                    "ActivationDescriptor", f"is out of range for {mode}", param=name, got=value, expected=rule
                )
        if mode == "hard_tanh" and values["low"] > values["high"]:
            raise BadParamError(
                "ActivationDescriptor", "exceeds high", param="low", got=values["low"], expected=f"<= {values['high']}"
            )
        object.__setattr__(self, "mode", mode)
        object.__setattr__(self, "parameters", tuple(values.items()))
        object.__setattr__(self, "_hash", hash((mode, self.parameters)))

    def __hash__(self) -> int:
        # Hashed at every call: kept, and read past __getattr__, which stands for the parameters.
        kept: int = self.__dict__["_hash"]
        return kept

    def __getattr__(self, name: str) -> float:
        for key, value in self.__dict__.get("parameters", ()):
            if key == name:
                return float(value)
        raise AttributeError(f"an activation of mode {self.__dict__.get('mode')!r} has no {name!r}")

    def __repr__(self) -> str:
        given = "".join(f", {name}={value!r}" for name, value in self.parameters)
        return f"ActivationDescriptor({self.mode!r}{given})"


def _anything(_: float) -> bool:
    return True


def as_activation(activation: str | ActivationDescriptor | None, op: str) -> ActivationDescriptor:
    """Accept a mode's name, with its defaults, for a descriptor; None is the identity."""
    if isinstance(activation, ActivationDescriptor):
        return activation
    if activation is None:
        return ActivationDescriptor("identity")
    if isinstance(activation, str) and activation in ACTIVATION_MODES:
        return ActivationDescriptor(activation)
    raise BadParamError(
        op,
        "is no activation",
        param="activation",
        got=repr(activation),
        expected="an ActivationDescriptor or one of " + ", ".join(ACTIVATION_MODES),
    )


def _finite(op: str, name: str, value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise BadParamError(op, "is not a number", param=name, got=repr(value), expected="a finite number") from None
    if not isfinite(number):
        raise BadParamError(op, "is not finite", param=name, got=value, expected="a finite number")
    return number


LOSS_KINDS = (
    "mse",
    "l1",
    "huber",
    "smooth_l1",
    "cross_entropy",
    "nll",
    "bce",
    "bce_with_logits",
    "kl_div",
    "hinge",
    "cosine",
)
REDUCTIONS = ("none", "sum", "mean_elements", "mean_samples")


#: Option -> the kinds that have it, and what it is for the others.
_LOSS_OPTIONS: dict[str, tuple[tuple[str, ...], object]] = {
    "delta": (("huber", "smooth_l1"), 1.0),
    "ignore_index": (("cross_entropy", "nll"), -100),
    "label_smoothing": (("cross_entropy",), 0.0),
    "margin": (("hinge",), 1.0),
    "log_target": (("kl_div",), False),
}


@dataclass(frozen=True)
class LossDescriptor:
    """A loss, how it is reduced and its options.

    Parameters
    ----------
    kind : str
        One of `LOSS_KINDS`.
    reduction : str
        ``none``: the losses unreduced; ``sum``; ``mean_elements``: over every element of the unreduced loss (for
        cross-entropy and nll with labels: over the sum of the weights of the labels that are not ignored);
        ``mean_samples``: sum over outputs, mean over the samples of axis 0, (1/m) sum_i ||y_i - net(x_i)||^2 for mse.
    delta : float
        Where huber and smooth_l1 turn linear.
    ignore_index : int
        Label that contributes neither loss nor gradient (cross_entropy, nll).
    label_smoothing : float
        In [0, 1]; the share of the target spread evenly over the classes (cross_entropy).
    margin : float
        Of hinge: max(0, margin - target * prediction).
    log_target : bool
        Whether the target of kl_div is in log space.

    Raises
    ------
    BadParamError
        A value is not one of those above, or an option is given that the kind does not have.
    """

    kind: str
    reduction: str = "mean_samples"
    delta: float = 1.0
    ignore_index: int = -100
    label_smoothing: float = 0.0
    margin: float = 1.0
    log_target: bool = False

    def __post_init__(self) -> None:
        op = "LossDescriptor"
        if self.kind not in LOSS_KINDS:
            raise BadParamError(
                op, "is unknown", param="kind", got=repr(self.kind), expected="one of " + ", ".join(LOSS_KINDS)
            )
        if self.reduction not in REDUCTIONS:
            raise BadParamError(
                op,
                "is unknown",
                param="reduction",
                got=repr(self.reduction),
                expected="one of " + ", ".join(REDUCTIONS),
            )
        object.__setattr__(self, "margin", _finite(op, "margin", self.margin))
        object.__setattr__(self, "delta", _finite(op, "delta", self.delta))
        object.__setattr__(self, "label_smoothing", _finite(op, "label_smoothing", self.label_smoothing))
        if self.delta <= 0:
            raise BadParamError(op, "is out of range", param="delta", got=self.delta, expected="> 0")
        if not 0.0 <= self.label_smoothing <= 1.0:
            raise BadParamError(
                op, "is out of range", param="label_smoothing", got=self.label_smoothing, expected="in [0, 1]"
            )
        if (
            isinstance(self.ignore_index, bool)
            or not isinstance(self.ignore_index, int)
            or abs(self.ignore_index) >> 63
        ):
            raise BadParamError(
                op, "is no integer", param="ignore_index", got=repr(self.ignore_index), expected="an int of 64 bits"
            )
        for option, (kinds, default) in _LOSS_OPTIONS.items():
            if self.kind not in kinds and getattr(self, option) != default:
                raise BadParamError(
                    op,
                    f"is no option of {self.kind}",
                    param=option,
                    got=getattr(self, option),
                    expected=f"{default}, its default",
                )


def as_loss(loss: str | LossDescriptor, op: str) -> LossDescriptor:
    """Accept a kind's name, with its defaults, for a descriptor."""
    if isinstance(loss, LossDescriptor):
        return loss
    if isinstance(loss, str) and loss in LOSS_KINDS:
        return LossDescriptor(loss)
    raise BadParamError(
        op, "is no loss", param="loss", got=repr(loss), expected="a LossDescriptor or one of " + ", ".join(LOSS_KINDS)
    )


def create_tensor_descriptor(
    shape: tuple[int, ...], dtype: object, strides: tuple[int, ...] | None = None
) -> TensorDescriptor:
    """Return `TensorDescriptor(shape, dtype, strides)`, for those who come from cuDNN."""
    return TensorDescriptor(shape, dtype, strides)


def create_activation_descriptor(mode: str, **parameters: float) -> ActivationDescriptor:
    """Return `ActivationDescriptor(mode, **parameters)`, for those who come from cuDNN."""
    return ActivationDescriptor(mode, **parameters)


def create_loss_descriptor(kind: str, **options: Any) -> LossDescriptor:
    """Return `LossDescriptor(kind, **options)`, for those who come from cuDNN."""
    return LossDescriptor(kind, **options)
