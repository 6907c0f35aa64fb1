"""Error bounds: derived here, and nowhere else. A tolerance written down in another file is a defect.

Every bound is an absolute error, element by element, against the reference evaluated in float64 on the very inputs that
the primitive saw. With u the unit roundoff of a type (half its spacing at 1), there are three tiers:

T0  exact       No error at all: data that are moved or selected, and sums and products of numbers that lie on one grid
                and are few enough for the accumulator to hold every partial result (`exactness`). It is a property of
                the data, found element by element, and goes before the other tiers: a product of small integers is
                held to its last bit, in any order of summation and in every dtype.
T1  elementwise An elementary function is right to some ULP of its accumulator (float32; float64 for float64), then
                rounded once (`elementwise`).
T2  sums        A sum of n terms is right to min(4 sqrt(n) + 8, n) u_acc sum|terms| (`sums`).

Composite functions propagate the bounds of their parts to first order (`rows`, `losses`, `updates`); the factor
1 + 2^-10 of `product_error`, and the counts rounded up elsewhere, cover the second.

The float64 reference has errors of its own, of the size of a float64 kernel's. Bounds on float64 results are therefore
doubled: one share for each side.

`TIERS` says for each primitive which of them apply, and through which derivation.
"""

from __future__ import annotations

from .elementwise import (
    DERIVATIVE_FLOOR,
    DERIVATIVE_ULP,
    ELEMENTWISE_DERIVATIVE_ULP,
    ELEMENTWISE_FORWARD_ULP,
    FUNCTION_ULP,
    accumulator_error,
    blended,
    carried,
    function_error,
    library_gelu_error,
    product_error,
    relative_unit,
    rounded,
    scaled_unit,
    slope_size,
    ulp_bound,
)
from .exactness import exact, exact_products, exact_roots, exact_sums, exact_where, grid, lowest_bit, representable
from .formats import Array, accumulator, largest_finite, ulp, unit_roundoff
from .losses import (
    cosine_errors,
    cross_entropy_errors,
    elementwise_loss_errors,
    loss_grid,
    nll_errors,
)
from .norms import averaged_error, inverse_root_error, moments_errors
from .rows import exponential_sum, log_softmax_error, softmax_error
from .sums import early_rounding, growth, norm_error, sum_bound, sum_error, tf32_error
from .updates import adam_errors, sgd_errors, sgd_exact

#: Primitive -> (tiers, what they apply to and the derivation that says so).
TIERS: dict[str, tuple[str, str]] = {
    "fc_forward": ("T0 T2 T1", "sums of products (sum_error, tf32_error, early_rounding), then an activation"),
    "fc_backward": ("T0 T2 T1", "dz by product_error; dx and dw carry its rounding through their sums, db is a sum"),
    "fc_backward_data": ("T0 T2", "sums of products"),
    "fc_backward_weights": ("T0 T2", "sums of products"),
    "fc_backward_bias": ("T0 T2", "sums"),
    "conv_forward": ("T0 T2 T1", "sums of products, the operations after them counted, then an activation"),
    "conv_backward_data": ("T0 T2", "sums of products"),
    "conv_backward_filter": ("T0 T2", "sums of products"),
    "conv_backward_bias": ("T0 T2", "sums"),
    "conv_transpose_forward": ("T0 T2", "sums of products and a bias"),
    "conv_transpose_backward": ("T0 T2", "dx and dw sums of products, db a sum"),
    "pooling_forward": ("T0 T2", "a maximum and its index exactly; a mean is a sum and two roundings"),
    "pooling_backward": ("T0 T2", "sums over the windows of an element"),
    "batchnorm_forward_training": (
        "T0 T2 T1",
        "moments_errors, through a root (inverse_root_error) into every element",
    ),
    "batchnorm_forward_inference": ("T0 T1", "a root, a difference, products and sums counted"),
    "batchnorm_backward": ("T0 T2 T1", "two sums of products, then three terms; dz may jump where z is near a kink"),
    "activation_forward": ("T0 T1", "function_error; pieces that select or take one operation are exact on a grid"),
    "activation_backward": ("T0 T1", "function_error of the slope, then a product"),
    "prelu_forward": ("T0 T1", "one product, half an ULP of the accumulator"),
    "prelu_backward": ("T0 T1 T2", "dx one product; dslope sums of products"),
    "maxout_forward": ("T0", "selected values and their indices"),
    "maxout_backward": ("T0 T1", "moved gradients; a blend by its products and its sum"),
    "glu_forward": ("T0 T1", "product_error of a number and a gate"),
    "glu_backward": ("T0 T1", "product_error of two and of three factors"),
    "softmax_forward": ("T0 T1 T2", "softmax_error, log_softmax_error; equal elements of 2^k classes are exact"),
    "softmax_backward": ("T0 T2", "a sum over the row, a difference and a product"),
    "loss_forward": ("T0 T1 T2", "errors of the losses, and the sum of those"),
    "loss_backward": ("T0 T1 T2", "errors of the slopes, the divisor's and four roundings"),
    "loss_forward_backward": ("T0 T1 T2", "as both"),
    "sgd_update": ("T0 T1", "sgd_errors: operations counted"),
    "adam_update": ("T0 T1", "adam_errors: operations counted, through the root; a skipped step is exact"),
    "adamw_update": ("T0 T1", "adam_errors, with the decay apart"),
    "global_norm": ("T0 T2", "norm_error; a sum of squares on a grid leaves the root's rounding"),
    "clip_by_global_norm": ("T0 T2", "norm_error carried into the coefficient; what is not clipped is exact"),
    "scale_and_check_finite": ("T0 T1", "one product; the flag exactly"),
    "set_tensor": ("T0 T1", "one rounding"),
    "scale_tensor": ("T0 T1", "one product"),
    "add_tensor": ("T0 T1", "two products and their sum"),
    "cast": ("T0 T1", "one rounding; integers exactly"),
    "reduce_tensor": ("T0 T2", "sums; products by their roundings; selections and indices exactly"),
}

__all__ = [
    "DERIVATIVE_FLOOR",
    "DERIVATIVE_ULP",
    "ELEMENTWISE_DERIVATIVE_ULP",
    "ELEMENTWISE_FORWARD_ULP",
    "FUNCTION_ULP",
    "TIERS",
    "Array",
    "accumulator",
    "accumulator_error",
    "adam_errors",
    "averaged_error",
    "blended",
    "carried",
    "cosine_errors",
    "cross_entropy_errors",
    "early_rounding",
    "elementwise_loss_errors",
    "exact",
    "exact_products",
    "exact_roots",
    "exact_sums",
    "exact_where",
    "exponential_sum",
    "function_error",
    "grid",
    "growth",
    "inverse_root_error",
    "largest_finite",
    "library_gelu_error",
    "log_softmax_error",
    "loss_grid",
    "lowest_bit",
    "moments_errors",
    "nll_errors",
    "norm_error",
    "product_error",
    "relative_unit",
    "representable",
    "rounded",
    "scaled_unit",
    "sgd_errors",
    "sgd_exact",
    "slope_size",
    "softmax_error",
    "sum_bound",
    "sum_error",
    "tf32_error",
    "ulp",
    "ulp_bound",
    "unit_roundoff",
]
