"""Cases of fully connected layers: exact integer products of every shape, then random ones under the bound of sums."""

from __future__ import annotations

import numpy as np

from ...reference import fc as reference
from ..calls import Generator, Primitive
from ..cases import CaseFamily
from ..drawing import draw_placing, pick
from .limits import (
    bound_backward,
    bound_forward,
    bound_product,
    exact_reference,
    into_gradients,
    into_product,
    into_rows,
)
from .operands import draw_backward, draw_forward, draw_product

#: Activations of the cases: those with a fused way, and some that follow the product.
_ACTIVATIONS = ("relu", "gelu_tanh", "gelu", "sigmoid", "tanh", "swish")

#: Those that are steep or jump, whose errors are not those of the product.
_STEEP = ("exp", "square", "squared_relu", "hardshrink", "log", "sqrt")


def draw(rng: Generator) -> str:
    """A random problem of moderate size."""
    rows, k, n = (int(np.exp(rng.uniform(0.0, np.log(70.0)))) for _ in range(3))
    op = pick(rng, "fc_forward", "fc_forward", *FAMILY.primitives)
    activation = pick(rng, "", *(f"activation={mode}" for mode in _ACTIVATIONS))
    data = pick(rng, "normal", "lopsided" if activation == "activation=relu" else "integers")
    k = max(k, 4) if data == "lopsided" else k  # so that few sums are negative
    words = f"rows={pick(rng, str(rows), f'2x{rows}')} k={k} n={n} data={data}"
    if op == "fc_forward":
        return f"{op} {words} {activation} bias={int(rng.integers(2))} {draw_placing(rng, in_place=False)}"
    if op == "fc_backward":
        beta = pick(rng, "", "beta=1.0")
        needs = pick(rng, "dx,dw,db", "dx,dw,db", "dw,db", "dx")
        place = draw_placing(rng, in_place=False, blend=False)
        return f"{op} {words} {activation} needs={needs} {beta if 'dw' in needs else ''} {place}"
    return f"{op} {words} {draw_placing(rng, in_place=False)}"


def _corners() -> tuple[str, ...]:
    lines = [
        "fc_forward rows=0 k=3 n=4",
        "fc_forward rows=3 k=0 n=4 into=out",  # act(b)
        "fc_forward rows=3 k=4 n=0",
        "fc_forward rows=1 k=1 n=1 into=out",
        "fc_forward rows=33 k=17 n=65 data=integers into=out",
        "fc_forward rows=64 k=32 n=64 data=lopsided activation=relu into=out",
        "fc_forward rows=2x3x5 k=8 n=16 data=integers bias=0",
        "fc_forward rows=33 k=40 n=31 place=offset data=integers into=out",
        "fc_forward rows=16 k=300 n=24 into=out",
        "fc_forward rows=16 k=24 n=40 alpha=0.5 beta=-1.25 into=out",
        "fc_forward rows=16 k=24 n=40 activation=swish alpha=0.5 beta=-1.25 into=out",
        "fc_forward rows=9 k=24 n=40 activation=gelu aux=1 into=out",
        "fc_forward rows=33 k=17 n=24 data=integers alpha=0.5 beta=1.0 into=out",
        "fc_forward rows=9 k=24 n=40 data=integers aux=1 into=out",
        "fc_backward_data rows=0 k=3 n=4",
        "fc_backward_data rows=3 k=4 n=0 into=out",
        "fc_backward_data rows=33 k=65 n=17 data=integers into=out",
        "fc_backward_data rows=9 k=24 n=200 alpha=0.5 beta=2.0 into=out",
        "fc_backward_weights rows=0 k=3 n=4 into=out",
        "fc_backward_weights rows=33 k=17 n=65 data=integers place=offset into=out",
        "fc_backward_weights rows=300 k=24 n=9 beta=1.0 into=out",
        "fc_backward_data rows=9 k=24 n=40 data=integers alpha=0.5 beta=2.0 into=out",
        "fc_backward_weights rows=60 k=24 n=9 data=integers beta=1.0 into=out",
        "fc_backward rows=40 k=17 n=24 data=integers beta=1.0 into=out",
        "fc_backward_bias rows=0 n=4 into=out",
        "fc_backward_bias rows=60 n=33 data=integers into=out",
        "fc_backward_bias rows=700 n=40 beta=1.0 into=out",
        "fc_backward rows=0 k=3 n=4 into=out",
        "fc_backward rows=33 k=17 n=40 data=lopsided activation=relu into=out",
        "fc_backward rows=33 k=17 n=40 data=integers needs=db",
        "fc_backward rows=300 k=132 n=10 beta=1.0 into=out",
        "fc_backward rows=1100 k=128 n=3 data=integers needs=dx,dw",
        "fc_backward rows=2x5 k=9 n=17 activation=gelu place=offset into=out",
        "fc_backward rows=40 k=16 n=24 activation=tanh beta=1.0 into=out",
    ]
    lines += [f"fc_forward rows=33 k=8 n=40 activation={mode}" for mode in _STEEP]
    for mode in _ACTIVATIONS:
        lines += [f"fc_forward rows=20 k=30 n=24 activation={mode}", f"fc_backward rows=20 k=30 n=24 activation={mode}"]
    return tuple(lines)


_PRODUCT = Primitive(draw_product, bound_product, into_product)


FAMILY = CaseFamily(
    "fc",
    reference,
    {
        "fc_forward": Primitive(draw_forward, bound_forward, into_rows, ("aux",), exact_reference),
        "fc_backward_data": _PRODUCT,
        "fc_backward_weights": _PRODUCT,
        "fc_backward_bias": _PRODUCT,
        "fc_backward": Primitive(draw_backward, bound_backward, into_gradients, reference=exact_reference),
    },
    _corners(),
    draw,
)
