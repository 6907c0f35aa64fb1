"""Plans of the batch norms: what is refused, which variant is taken, and its launches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import nan, prod

from ... import checks
from ...descriptors import ActivationDescriptor, BatchNormDescriptor, TensorDescriptor
from ...runtime.launch import NULL, KernelStep, Live, PlanSpec, Pointer, Profile, Result, Scratch, choose, unaligned
from .contract import Activation, require_fused, require_images, require_outs, require_parameters
from .kernels import (
    APPLY,
    APPLY_PLANES,
    CHANNEL_MOMENTS,
    CHANNEL_SUMS,
    DATA,
    DATA_PLANES,
    FINISH,
    GRADIENTS,
    HELD_BACKWARD,
    HELD_FORWARD,
    MOMENTS,
    SUMS,
    UNITS_FORWARD,
    fold_step,
    held_step,
    limits,
    planes_step,
    walk_step,
)
from .tiling import (
    Held,
    Tiling,
    Unit,
    hold,
    hold_units,
    reason_against_packs,
    reason_against_planes,
    resident_blocks,
    share_out,
    whole_channels,
)

#: Gradients that `batchnorm_backward` has, in the order in which it returns them.
GRADIENT_NAMES = ("dx", "dgamma", "dbeta", "dresidual")


def plan_batchnorm_forward_training(
    profile: Profile,
    norm: BatchNormDescriptor,
    activation: Activation,
    x: TensorDescriptor,
    gamma: TensorDescriptor,
    beta: TensorDescriptor,
    residual: TensorDescriptor | None,
    running_mean: TensorDescriptor | None,
    running_variance: TensorDescriptor | None,
    out: TensorDescriptor | None,
    mean: TensorDescriptor | None,
    rstd: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `batchnorm_forward_training`."""
    op = "batchnorm_forward_training"
    mode = require_fused(op, norm, activation, x)
    given = {"gamma": gamma, "beta": beta, "running_mean": running_mean, "running_variance": running_variance}
    shape = require_parameters(op, norm, x, given)
    require_images(op, x, residual=residual)
    require_outs(op, x, shape, out=out)
    require_outs(op, x, shape, mean=mean, rstd=rstd)
    kept = tuple(Result(i, shape, x.dtype.acc) for i in (7, 8))
    spec = PlanSpec(
        op,
        "held_channels",
        (),
        results=(Result(6, x.shape, x.dtype), *kept),
        returns=(6, 7, 8),
        writes=(6, 7, 8, 4, 5),
        in_place=((6, 0), (6, 3)),
    )
    running = (_or_null(4, running_mean), _or_null(5, running_variance))
    unbiased, image = int(norm.running_variance == "unbiased"), _or_null(3, residual)
    units = _hold_units(profile, norm, x, residual=residual, out=out)
    held = units if isinstance(units, Unit) else _hold(profile, norm, x, 1, residual=residual, out=out)
    if not isinstance(held, str):
        kernel, variant = (UNITS_FORWARD, "held_units") if isinstance(held, Unit) else (HELD_FORWARD, "held_channels")
        numbers = (norm.epsilon, *limits(mode), Live(0), unbiased)
        step = held_step(kernel, x.dtype, held, (6, 0, image, 1, 2, 7, 8, *running), numbers)
        before = (("held_units", str(units)),) if variant == "held_channels" else ()
        return replace(spec, variant=variant, steps=(step,), refused=before)
    tiling, variant, refused = _share_out(profile, norm, x, planes=True, residual=residual, out=out)
    elements, pointers = x.size // max(prod(shape), 1), (6, 0, image, 1, 2, 7, 8)
    apply = walk_step(APPLY, x.dtype, tiling, pointers, (norm.epsilon, *limits(mode), 0))
    if variant == "planes":
        apply = planes_step(APPLY_PLANES, x.dtype, tiling, pointers, limits(mode))
    statistics = _statistics(profile, norm, x, tiling, variant == "planes", running)
    return replace(
        spec,
        variant=variant,
        steps=(*(statistics if elements else statistics[-1:]), *((apply,) if elements else ())) if prod(shape) else (),
        scratch=(_part_bytes(x, tiling, 3),),
        refused=(("held_units", str(units)), ("held_channels", held), *refused),
    )


def _statistics(
    profile: Profile,
    norm: BatchNormDescriptor,
    x: TensorDescriptor,
    t: Tiling,
    planes: bool,
    running: tuple[Pointer, Pointer],
) -> tuple[KernelStep, ...]:
    """The launches that leave mean and rstd: one where a block has a channel, else parts of the rows are merged."""
    unbiased = int(norm.running_variance == "unbiased")
    whole = whole_channels(profile, x.dtype, t, backward=False) if planes else None
    if whole:
        return (walk_step(CHANNEL_MOMENTS, x.dtype, whole, (7, 8, *running, 0), (norm.epsilon, Live(0), unbiased)),)
    finish = fold_step(
        FINISH, x.dtype, t, (7, 8, *running, Scratch(0)),
        (norm.epsilon, Live(0), t.channels, t.slots if x.size else 0, t.team.bit_length() - 1, unbiased),
    )  # fmt: skip
    return walk_step(MOMENTS, x.dtype, t, (Scratch(0), 0)), finish


def plan_batchnorm_forward_inference(
    profile: Profile,
    norm: BatchNormDescriptor,
    activation: Activation,
    x: TensorDescriptor,
    gamma: TensorDescriptor,
    beta: TensorDescriptor,
    running_mean: TensorDescriptor,
    running_variance: TensorDescriptor,
    residual: TensorDescriptor | None,
    out: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `batchnorm_forward_inference`."""
    op = "batchnorm_forward_inference"
    mode = require_fused(op, norm, activation, x)
    given = {"gamma": gamma, "beta": beta, "running_mean": running_mean, "running_variance": running_variance}
    require_parameters(op, norm, x, given)
    require_images(op, x, residual=residual)
    checks.require_out(op, out, x.shape, x.dtype, rule="x.shape")
    tiling, variant, refused = _share_out(profile, norm, x, residual=residual, out=out)
    step = walk_step(
        APPLY, x.dtype, tiling, (6, 0, _or_null(5, residual), 1, 2, 3, 4), (norm.epsilon, *limits(mode), 1)
    )
    return PlanSpec(
        op,
        variant,
        (step,) if x.size else (),
        results=(Result(6, x.shape, x.dtype),),
        returns=(6,),
        writes=(6,),
        in_place=((6, 0), (6, 5)),
        refused=refused,
    )


def plan_batchnorm_backward(
    profile: Profile,
    norm: BatchNormDescriptor,
    activation: Activation,
    needs: tuple[str, ...],
    dy: TensorDescriptor,
    x: TensorDescriptor,
    gamma: TensorDescriptor,
    mean: TensorDescriptor,
    rstd: TensorDescriptor,
    beta: TensorDescriptor | None,
    y: TensorDescriptor | None,
    dx: TensorDescriptor | None,
    dgamma: TensorDescriptor | None,
    dbeta: TensorDescriptor | None,
    dresidual: TensorDescriptor | None,
) -> PlanSpec:
    """Plan of `batchnorm_backward`."""
    op = "batchnorm_backward"
    mode = require_fused(op, norm, activation, x)
    checks.require_needs(op, needs, GRADIENT_NAMES, dx=dx, dgamma=dgamma, dbeta=dbeta, dresidual=dresidual)
    shape = require_parameters(op, norm, x, {"gamma": gamma, "mean": mean, "rstd": rstd, "beta": beta})
    require_images(op, x, dy=dy, y=y)
    if mode.mode != "identity" and y is None:
        checks.require_present(op, "beta", beta, "beta, or y, to know on which side of the kink z was")
    checks.require_out(op, dx, x.shape, x.dtype, param="dx", rule="x.shape")
    checks.require_out(op, dresidual, x.shape, x.dtype, param="dresidual", rule="x.shape")
    for name, value in (("dgamma", dgamma), ("dbeta", dbeta)):
        checks.require_out(op, value, shape, x.dtype.acc, param=name, rule="gamma.shape")
    places = dict(zip(GRADIENT_NAMES, (7, 8, 9, 10), strict=True))
    made = tuple(
        Result(places[name], *((x.shape, x.dtype) if name in ("dx", "dresidual") else (shape, x.dtype.acc)))
        for name in GRADIENT_NAMES
        if name in needs
    )
    written = tuple(result.operand for result in made)
    spec = PlanSpec(op, "held_channels", (), results=made, returns=written, writes=written, in_place=((7, 0), (10, 0)))
    held = _hold(profile, norm, x, 2, dy=dy, y=y, dx=dx, dresidual=dresidual)
    if isinstance(held, Held):
        return replace(spec, steps=(_held_gradients(mode, needs, x, held, y is not None),))
    tiling, variant, refused = _share_out(profile, norm, x, planes=True, dy=dy, y=y, dx=dx, dresidual=dresidual)
    spec = replace(spec, variant=variant, refused=(("held_channels", held), *refused))
    whole = whole_channels(profile, x.dtype, tiling, backward=True) if variant == "planes" else None
    return _with_gradients(spec, mode, needs, x, tiling, whole, y is not None) if prod(shape) else spec


def _held_gradients(
    mode: ActivationDescriptor, needs: tuple[str, ...], x: TensorDescriptor, held: Held, has_y: bool
) -> KernelStep:
    """The one launch of a backward whose blocks hold their channels."""
    dx, dgamma, dbeta, dresidual = (
        i if name in needs else NULL for name, i in zip(GRADIENT_NAMES, (7, 8, 9, 10), strict=True)
    )
    bent = mode.mode != "identity"
    y, beta = 6 if bent and has_y else NULL, 5 if bent and not has_y else NULL
    pointers = (dx, dresidual, dgamma, dbeta, 0, 1, y, 2, beta, 3, 4)
    return held_step(HELD_BACKWARD, x.dtype, held, pointers, (*limits(mode, nan), int(bent)))


def _with_gradients(
    spec: PlanSpec,
    mode: ActivationDescriptor,
    needs: tuple[str, ...],
    x: TensorDescriptor,
    t: Tiling,
    whole: Tiling | None,
    has_y: bool,
) -> PlanSpec:
    """Add the launches; dx takes its dz from dresidual where that is written anyhow."""
    places = {name: i if name in needs else NULL for name, i in zip(GRADIENT_NAMES, (7, 8, 9, 10), strict=True)}
    bent = mode.mode != "identity"
    y: Pointer = 6 if bent and has_y else NULL
    beta: Pointer = 5 if bent and not has_y else NULL
    elements, summed = t.rows * t.inner, (places["dresidual"], 0, 1, y, 2, beta, 3, 4)
    sums = walk_step(SUMS, x.dtype, t, (Scratch(0), *summed), limits(mode, nan))
    factors = (Scratch(1), places["dgamma"], places["dbeta"])
    fold = fold_step(
        GRADIENTS, x.dtype, t, (*factors, 4, Scratch(0)),
        (t.channels, t.slots if elements else 0, t.team.bit_length() - 1, elements),
    )  # fmt: skip
    known = places["dresidual"] is not NULL
    source: tuple[Pointer, ...] = (places["dresidual"], 1, NULL, 2, NULL, 3, 4) if known else (0, 1, y, 2, beta, 3, 4)
    pointers, bounds = (7, Scratch(1), *source), (nan, nan) if known else limits(mode, nan)
    data = walk_step(DATA, x.dtype, t, pointers, (*bounds, t.channels))
    if spec.variant == "planes":
        data = planes_step(DATA_PLANES, x.dtype, t, pointers, bounds)
    steps = [sums, fold] if elements else [fold]
    if whole:
        numbers = (*limits(mode, nan), t.channels, elements)
        steps = [walk_step(CHANNEL_SUMS, x.dtype, whole, (*factors, *summed), numbers)]
    elif elements and places["dx"] is NULL and not {"dgamma", "dbeta"} & set(needs):
        steps = [sums]
    if elements and places["dx"] is not NULL:
        steps.append(data)
    return replace(
        spec, steps=tuple(steps), scratch=(_part_bytes(x, t, 2), 2 * max(t.channels, 1) * x.dtype.acc.itemsize)
    )


def _share_out(
    profile: Profile,
    norm: BatchNormDescriptor,
    x: TensorDescriptor,
    *,
    planes: bool = False,
    **images: TensorDescriptor | None,
) -> tuple[Tiling, str, tuple[tuple[str, str], ...]]:
    """How the work is shared out, the variant and those refused before it."""
    if norm.mode == "per_activation":
        rows, channels, inner = x.shape[0], prod(x.shape[1:]), 1
    elif norm.channels_last:
        rows, channels, inner = prod(x.shape[:-1]), x.shape[-1], 1
    else:
        rows, channels, inner = x.shape[0], x.shape[1], prod(x.shape[2:])
    if not x.size:  # only what there is of each channel is written
        rows, inner = 0, 1
    lanes, backward = x.dtype.lanes, "dy" in images
    reason = unaligned(x=x, **images)
    straight = [("planes", reason or reason_against_planes(rows, channels, inner, lanes))] if planes else []
    packed = reason or reason_against_packs(channels, inner, lanes)
    variant, refused = choose((*straight, ("packed", packed), ("plain", None)))
    vec, resident = 1 if variant == "plain" else lanes, resident_blocks(profile, x.dtype, backward)
    return share_out(rows, channels, inner, vec, resident, backward=backward), str(variant), refused


def _hold(
    profile: Profile, norm: BatchNormDescriptor, x: TensorDescriptor, arrays: int, **images: TensorDescriptor | None
) -> Held | str:
    """How blocks hold whole channels of so many arrays, or why they do not."""
    reason = _reason_against_holding(norm, x, images)
    rows, channels, *inner = x.shape
    return reason or hold(rows, channels, prod(inner), x.dtype, arrays, profile.row_bytes)


def _hold_units(
    profile: Profile, norm: BatchNormDescriptor, x: TensorDescriptor, **images: TensorDescriptor | None
) -> Unit | str:
    """How blocks hold units of channels, or why they do not."""
    reason = _reason_against_holding(norm, x, images)
    rows, channels, *inner = x.shape
    return reason or hold_units(profile, rows, channels, prod(inner), x.dtype)


def _reason_against_holding(
    norm: BatchNormDescriptor, x: TensorDescriptor, images: Mapping[str, TensorDescriptor | None]
) -> str | None:
    if norm.mode == "per_activation" or norm.channels_last:
        return "statistics are of single columns"
    return unaligned(x=x, **images) if x.size else "there are no elements"


def _part_bytes(x: TensorDescriptor, t: Tiling, numbers: int) -> int:
    """So many numbers for each channel and slot."""
    return numbers * max(t.channels * t.slots, 1) * x.dtype.acc.itemsize


def _or_null(place: int, value: TensorDescriptor | None) -> Pointer:
    return NULL if value is None else place
