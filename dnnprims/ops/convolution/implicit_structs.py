"""Kernels of the implicit products of convolutions, and their parameter structs."""

from __future__ import annotations

from ...runtime.launch import Kernel, Struct


def _axes(names: str) -> tuple[tuple[str, str], ...]:
    return tuple((f"{name}_{axis}", "i32") for axis in "dhw" for name in names.split())


def _ints(names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, "i32") for name in names.split())


_FACTORS = tuple((name, "A") for name in ("alpha1", "alpha2", "alpha", "beta"))
_AFTER = ("b", "residual", "scale", "shift")
_GATHER = Struct(
    "ImplicitGatherParams",
    ("result", "source", "w", *_AFTER, "partial"),
    (
        *_FACTORS,
        ("partial_size", "i64"),
        *_ints("images terms lines column_tiles splits result_outer result_channel source_outer source_channel"),
        *_ints("residual_outer residual_channel w_term w_line w_group w_first"),
        *_axes("result source taps stride dilation padding period hop result_step source_step tap_step residual_step"),
        *_ints("backwards source_packed source_along_terms w_packed w_along_terms result_packed relu padded"),
    ),
)
_FILTER = Struct(
    "ImplicitFilterParams",
    ("dw", "dy", "x", "partial"),
    (
        *(("alpha", "A"), ("beta", "A"), ("partial_size", "i64")),
        *_ints("images lines columns column_tiles taps positions per_split y_outer y_channel x_outer x_channel"),
        *_ints("w_outer w_channel w_first"),
        *_axes("output image taps stride dilation padding y_step x_step w_step"),
        *_ints("y_packed y_along_channels x_packed x_along_channels w_packed"),
    ),
)
_STEPS = "outer channel d h w"
FOLD = Kernel(
    "convolution_implicit",
    "implicit_fold",
    Struct(
        "ImplicitFoldParams",
        ("result", "partial", *_AFTER),
        (
            *_FACTORS,
            *((name, "i64") for name in ["size", "splits", "first", "channels", "extent_d", "extent_h", "extent_w"]),
            *((f"{name}_{step}", "i64") for name in ("result", "residual") for step in _STEPS.split()),
            *_ints("channels_last relu"),
        ),
    ),
)
REPACK = Kernel(
    "convolution_implicit",
    "implicit_repack",
    Struct(
        "ImplicitRepackParams",
        ("packed", "w"),
        tuple(
            (name, "i64")
            for name in (
                *["size", "taps_d", "taps_h", "taps_w", "terms", "lines", "lines_padded"],
                *(f"step_{name}" for name in ["group", "d", "h", "w", "term", "line"]),
                "first",
            )
        ),
    ),
)

#: With fused multiply-adds, likewise of taps and channels joined, and on tensor cores.
FFMA_GATHER = Kernel("convolution_implicit", "implicit_gather", _GATHER)
FFMA_FILTER = Kernel("convolution_implicit", "implicit_filter", _FILTER)
JOINED_FORWARD = Kernel("convolution_joined", "joined_forward", _GATHER)
JOINED_FILTER = Kernel("convolution_joined", "joined_filter", _FILTER)
MMA_GATHER = Kernel("convolution_mma", "mma_gather", _GATHER)
MMA_FILTER = Kernel("convolution_mma", "mma_filter", _FILTER)
