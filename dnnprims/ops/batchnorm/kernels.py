"""Kernels of the batch norms: their parameter structs and launches."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from ...descriptors import ActivationDescriptor
from ...dtypes import DType
from ...runtime.launch import Family, Kernel, KernelStep, Live, Pointer, Struct, blocks_for
from .tiling import PLANES_PACKS, THREADS, Held, Tiling, Unit

_TILING = tuple(
    (name, "i64") for name in ("rows", "channels", "inner", "unit_channels", "tiles", "width", "depth", "rows_per_part")
)
_LIMITS = (("low", "A"), ("high", "A"))
_PARAMETERS = ("gamma", "beta", "mean", "rstd")
#: ``NormGiven``, what gradients are made from.
_GIVEN = ("dy", "x", "y", *_PARAMETERS)

MOMENTS = Kernel("batchnorm", "batchnorm_moments", Struct("NormMomentsParams", ("parts", "x"), _TILING))
FINISH = Kernel(
    "batchnorm",
    "batchnorm_finish",
    Struct(
        "NormFinishParams",
        ("mean", "rstd", "running_mean", "running_variance", "parts"),
        (
            ("epsilon", "A"), ("factor", "f64"),
            ("channels", "i64"), ("slots", "i64"), ("shift", "i64"), ("unbiased", "i64"),
        ),
    ),
)  # fmt: skip
APPLY = Kernel(
    "batchnorm",
    "batchnorm_apply",
    Struct(
        "NormApplyParams",
        ("y", "x", "residual", "gamma", "beta", "mean", "spread"),
        (("epsilon", "A"), *_LIMITS, ("from_variance", "i64"), *_TILING),
    ),
)
SUMS = Kernel(
    "batchnorm",
    "batchnorm_sums",
    Struct("NormSumsParams", ("parts", "dz", *_GIVEN), (*_LIMITS, *_TILING)),
)
GRADIENTS = Kernel(
    "batchnorm",
    "batchnorm_gradients",
    Struct(
        "NormGradientsParams",
        ("factors", "dgamma", "dbeta", "rstd", "parts"),
        (("channels", "i64"), ("slots", "i64"), ("shift", "i64"), ("count", "i64")),
    ),
)
DATA = Kernel(
    "batchnorm",
    "batchnorm_data",
    Struct("NormDataParams", ("dx", "factors", *_GIVEN), (*_LIMITS, ("channels", "i64"), *_TILING)),
)

CHANNEL_MOMENTS = Kernel(
    "batchnorm",
    "batchnorm_channel_moments",
    Struct(
        "NormChannelMomentsParams",
        ("mean", "rstd", "running_mean", "running_variance", "x"),
        (("epsilon", "A"), ("factor", "f64"), ("unbiased", "i64"), *_TILING),
    ),
)
CHANNEL_SUMS = Kernel(
    "batchnorm",
    "batchnorm_channel_sums",
    Struct(
        "NormChannelSumsParams",
        ("factors", "dgamma", "dbeta", "dz", *_GIVEN),
        (*_LIMITS, ("channels", "i64"), ("count", "i64"), *_TILING),
    ),
)

_PLANES = (
    *_LIMITS,
    *(("packs", "i64"), ("channels", "u32")),
    *((f"{name}_{part}", "u32") for name in ("run", "channels") for part in ("multiplier", "shift")),
)
APPLY_PLANES = Kernel(
    "batchnorm", "batchnorm_apply_planes", Struct("NormPlanesParams", ("y", "x", "residual", *_PARAMETERS), _PLANES)
)
DATA_PLANES = Kernel(
    "batchnorm",
    "batchnorm_data_planes",
    Struct("NormPlanesDataParams", ("dx", "factors", *_GIVEN), _PLANES),
)

_HELD, _UNIT = (
    tuple((name, "i64") for name in ("rows", "channels", "inner", *more))
    for more in (("packs",), ("unit_channels", "packs"))
)
#: ``NormInOneParams``, but for its tiling.
_IN_ONE = ("y", "x", "residual", "gamma", "beta", "mean", "rstd", "running_mean", "running_variance")
_IN_ONE_NUMBERS = (("epsilon", "A"), *_LIMITS, ("factor", "f64"), ("unbiased", "i64"))
UNITS_FORWARD = Kernel(
    "batchnorm",
    "batchnorm_units_forward",
    Struct("NormUnitsForwardParams", _IN_ONE, (*_IN_ONE_NUMBERS, *_UNIT)),
)
HELD_FORWARD = Kernel(
    "batchnorm", "batchnorm_held_forward", Struct("NormHeldForwardParams", _IN_ONE, (*_IN_ONE_NUMBERS, *_HELD))
)
HELD_BACKWARD = Kernel(
    "batchnorm",
    "batchnorm_held_backward",
    Struct(
        "NormHeldBackwardParams",
        ("dx", "dz", "dgamma", "dbeta", *_GIVEN),
        (*_LIMITS, ("bent", "i64"), *_HELD),
    ),
)

#: Modes that clamp, or do nothing.
FUSED = ("identity", "relu", "clipped_relu", "hard_tanh")


def limits(activation: ActivationDescriptor, none: float = inf) -> tuple[float, float]:
    """What one of `FUSED` clamps to: from -none and up to none where it does not."""
    given = dict(activation.parameters)
    low = 0.0 if activation.mode in ("relu", "clipped_relu") else given.get("low", -none)
    return low + 0.0, given.get("ceiling", given.get("high", none))


def walk_step(
    kernel: Kernel, dtype: DType, t: Tiling, pointers: Sequence[Pointer], scalars: Sequence[float | int | Live] = ()
) -> KernelStep:
    """A launch of one of the kernels that walk down the rows."""
    backward = kernel in (SUMS, DATA, CHANNEL_SUMS)
    template, group = (dtype.cuda, str(t.vec)), "backward" if backward else "forward"
    return KernelStep(kernel, dtype, template, group, t.blocks, t.threads, tuple(pointers), (*scalars, *t.scalars))


def planes_step(
    kernel: Kernel, dtype: DType, t: Tiling, pointers: Sequence[Pointer], scalars: Sequence[float | int]
) -> KernelStep:
    """A launch of one of the kernels that go straight through memory."""
    packs = t.rows * t.channels * t.inner // dtype.lanes
    divisors: list[int] = []
    for extent in (t.inner // dtype.lanes, t.channels):
        shift = 31 + (extent - 1).bit_length()
        divisors += [-(-(1 << shift) // extent), shift]
    template, group = (dtype.cuda, str(dtype.lanes)), "backward" if kernel is DATA_PLANES else "forward"
    grid, numbers = blocks_for(packs, THREADS * PLANES_PACKS), (*scalars, packs, t.channels, *divisors)
    return KernelStep(kernel, dtype, template, group, grid, THREADS, tuple(pointers), numbers)


def held_step(
    kernel: Kernel, dtype: DType, held: Held | Unit, pointers: Sequence[Pointer], scalars: Sequence[float | int | Live]
) -> KernelStep:
    """A launch of a kernel that holds its channels."""
    group = "backward" if kernel is HELD_BACKWARD else "forward"
    template, grid, numbers = (dtype.cuda, str(dtype.lanes)), (held.blocks, 1, 1), (*scalars, *held.scalars)
    return KernelStep(kernel, dtype, template, group, grid, held.threads, tuple(pointers), numbers, held.nbytes)


def fold_step(
    kernel: Kernel, dtype: DType, t: Tiling, pointers: Sequence[Pointer], scalars: Sequence[float | int | Live]
) -> KernelStep:
    """A launch of one of the kernels that merge the slots of each channel."""
    group = "backward" if kernel is GRADIENTS else "forward"
    grid = blocks_for(t.channels * t.team, 256)
    return KernelStep(kernel, dtype, (dtype.cuda,), group, grid, 256, tuple(pointers), tuple(scalars))


def _instances(dtype: DType) -> dict[str, list[str]]:
    def walks(*entries: str) -> list[str]:
        return [f"{entry}<{dtype.cuda}, {vec}>" for entry in entries for vec in (1, dtype.lanes)]

    def packs(*entries: str) -> list[str]:
        return [f"{entry}<{dtype.cuda}, {dtype.lanes}>" for entry in entries]

    return {
        "forward": [
            *walks("batchnorm_moments", "batchnorm_apply"),
            f"batchnorm_finish<{dtype.cuda}>",
            *packs("batchnorm_channel_moments", "batchnorm_apply_planes"),
            *packs("batchnorm_held_forward", "batchnorm_units_forward"),
        ],
        "backward": [
            *walks("batchnorm_sums", "batchnorm_data"),
            f"batchnorm_gradients<{dtype.cuda}>",
            *packs("batchnorm_channel_sums", "batchnorm_data_planes", "batchnorm_held_backward"),
        ],
    }


_WALKING = (MOMENTS, FINISH, APPLY, SUMS, GRADIENTS, DATA)
_STRAIGHT = (CHANNEL_MOMENTS, CHANNEL_SUMS, APPLY_PLANES, DATA_PLANES)
FAMILY = Family("batchnorm", (*_WALKING, *_STRAIGHT, HELD_FORWARD, HELD_BACKWARD, UNITS_FORWARD), _instances)
