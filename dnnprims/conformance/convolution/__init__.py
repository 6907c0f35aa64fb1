"""Cases of convolutions: exact integer ones of every kind of problem, then random ones under the bound of sums."""

from __future__ import annotations

from ...reference import convolution as reference
from ..calls import Generator, Primitive
from ..cases import CaseFamily
from ..drawing import draw_placing, pick, show
from .limits import (
    bound_forward,
    bound_gradient,
    bound_transposed,
    bound_transposed_gradients,
    exact_reference,
    into_forward,
    into_gradient,
    into_transposed,
    into_transposed_gradients,
)
from .operands import draw_backward, draw_extents, draw_forward, draw_transposed, draw_transposed_backward

#: Activations of the cases.
_ACTIVATIONS = ("relu", "gelu_tanh", "sigmoid", "tanh", "swish")


def draw(rng: Generator) -> str:
    """A random problem of one to three spatial axes."""
    image, taps, words = draw_extents(rng, int(rng.integers(1, 4)))
    groups = int(rng.choice([1, 1, 2, 3]))
    batch, channels, filters = int(rng.integers(0, 4)), *(groups * int(rng.integers(1, 5)) for _ in range(2))
    op = pick(rng, "conv_forward", "conv_forward", *FAMILY.primitives)
    words = (
        f"{op} shape={show((batch, channels, *image))} k={filters} filter={show(taps)} {words} groups={groups}"
        f" layout={pick(rng, 'NCHW', 'NHWC')} mode={pick(rng, 'cross_correlation', 'convolution')}"
    )
    if op == "conv_forward":
        return f"{words} {_draw_epilogue(rng)} {draw_placing(rng, in_place=False)}"
    if op in _SPARSE and rng.random() < 0.5:
        needs = "needs=dw,db" if op == _ALL_GRADIENTS else ""
        return f"{words} data=integers beta=1.0 {needs} place={pick(rng, 'plain', 'offset')} into=out"
    words += f" data={pick(rng, 'normal', 'integers') if op not in _SPARSE else 'normal'}"
    return f"{words} {draw_placing(rng, in_place=False, blend=op != _ALL_GRADIENTS)}"


def _draw_epilogue(rng: Generator) -> str:
    """What follows the sums: most often little, now and then everything."""
    words = [f"{name}={int(rng.integers(2))}" for name in ("bias", "residual", "scaled")]
    words.append(f"sums={int(rng.random() < 0.25)}")
    activation = pick(rng, "", "", *(f"activation={mode}" for mode in _ACTIVATIONS))
    data = pick(rng, "normal", "lopsided" if activation == "activation=relu" else "integers")
    factors = pick(rng, "", "", "alpha1=0.5", "alpha1=-2.0 alpha2=0.75")
    return " ".join([*words, activation, f"data={data}", factors])


#: Activations that the kernels of special cases choose among as they run.
_FUSED = ("relu", "clipped_relu", "leaky_relu", "hard_swish", "swish")

#: Kinds of problem that every direction has: of one to three axes, each option alone and some together.
_PROBLEMS = (
    "shape=0x2x3x3 k=3 filter=2x2",
    "shape=1x1x1x1 k=1 filter=1x1",
    "shape=2x3x1x1 k=5 filter=3x3 padding=1",  # one position, of which the padding leaves one tap
    "shape=2x3x5x6 k=8 filter=3x2",
    "shape=2x3x5x6 k=4 filter=3x3 padding=1 layout=NHWC",
    "shape=2x3x7x6 k=4 filter=3x2 stride=2x3 padding=0-1x2-0",
    "shape=2x3x7x6 k=4 filter=2x3 stride=3 padding=1 layout=NHWC mode=convolution",
    "shape=2x3x7x6 k=4 filter=2x2 dilation=2x3 stride=2 mode=convolution",
    "shape=2x4x5x5 k=6 filter=3x3 groups=2 padding=1",
    "shape=2x5x6x5 k=10 filter=3x3 groups=5 padding=1 layout=NHWC",  # depthwise
    "shape=2x8x9x7 k=8 filter=3x3 groups=8 padding=1 layout=NHWC",  # depthwise, in packs of channels
    "shape=2x6x9x10 k=6 filter=5x5 groups=6 padding=2 stride=2 layout=NHWC mode=convolution",
    "shape=2x3x9x10 k=3 filter=3x3 groups=3 padding=1 stride=2",  # depthwise, of planes
    "shape=1x3x9x10 k=3 filter=5x5 groups=3 padding=2",
    "shape=2x7x6x5 k=7 filter=3x2 groups=7 padding=1 layout=NHWC",  # depthwise, an element at a time
    "shape=2x3x11x20 k=9 filter=7x7 stride=2 padding=3 layout=NHWC",  # few channels, as a first layer has
    "shape=2x9x5x4 k=7 filter=1x1 place=offset layout=NHWC",
    "shape=2x3x5x6 k=4 filter=2x3 bias=0 place=strided",
    "shape=2x3x5x6 k=4 filter=2x3 bias=0 place=strided layout=NHWC mode=convolution",
    "shape=2x16x6x5 k=24 filter=3x2 padding=1 layout=NHWC",  # channels that fill packs
    "shape=2x18x7x6 k=20 filter=2x3 groups=2 stride=2x3 dilation=1x2 padding=1 mode=convolution",
    "shape=1x64x5x4 k=16 filter=3x3 padding=1",  # few results of long sums
    "shape=3x3x17 k=4 filter=5 padding=2-0 dilation=2",
    "shape=3x4x17 k=6 filter=4 stride=3 groups=2 layout=NHWC",
    "shape=2x2x3x4x5 k=3 filter=2x3x2 padding=1x0x1-2 stride=1x2x1",
    "shape=1x4x3x4x3 k=4 filter=2x1x3 padding=0x1x1 groups=2 layout=NHWC mode=convolution",
)


#: A product of matrices; one for each image, or behind copies, where channels do not lie side by side.
_PRODUCT, _COPIED = (f"shape=2x24x1x{extents} k=16 filter=1x1x1 bias=0" for extents in ("4x6", "5x3"))
#: Channels by the eight, which whole algorithms are for.
_IN_EIGHTS = (
    "shape=2x8x5x4 k=16 filter=1x1",
    "shape=2x8x7x6 k=24 filter=3x3 stride=2 padding=1 data=integers mode=convolution",
    "shape=1x16x5x6 k=8 filter=3x3 padding=1",
    "shape=1x8x5x6 k=16 filter=3x3 padding=1 data=integers",
    "shape=2x16x7x9 k=16 filter=3x4 stride=2 data=integers",  # windows that step over groups of pixels
    "shape=1x4x6x8 k=8 filter=5x4 stride=2 padding=1 data=integers",  # few channels two pixels apart
    "shape=1x264x1x3 k=8 filter=1x3 padding=0x1",  # few results of many products
    "shape=1x8x1x3 k=264 filter=1x3 padding=0x1 data=integers",
)
#: Results whose channels are summed, by elements and by packs, and none at all.
_SUMMED = (
    "shape=2x3x5x6 k=4 filter=2x2 data=integers into=out",
    "shape=3x8x9x8 k=16 filter=3x3 padding=1 residual=1 activation=relu",
    "shape=0x2x3x3 k=3 filter=2x2 data=integers",
)
#: Groups that make up blocks of 64 channels.
_IN_BLOCKS = tuple(f"shape=1x64x11x12 k=64 filter=3x3 groups=16 padding=1 stride={stride}" for stride in (1, 2))
#: Few channels at stride 2, as a first layer has.
_FIRST = "shape=2x3x8x6 k=8 filter=3x3 stride=2 padding=1"
#: Channels by the eight with three axes.
_SOLID = "shape=1x16x2x3x4 k=8 filter=1x3x2 padding=0x1x0"


def _over(op: str) -> str:
    """Blended where many results would be 0: what no tap sees has no gradient, nor has a tap that sees nothing."""
    if op == _ALL_GRADIENTS:
        return "beta=1.0 needs=dw,db"
    return "beta=1.0" if op in _SPARSE else ""


def _corners() -> tuple[str, ...]:
    lines = [f"{op} {problem} data=integers {_over(op)} into=out" for op in FAMILY_OPS for problem in _PROBLEMS]
    image, sums = "shape=2x3x6x5 k=8 filter=3x3 padding=1", "shape=3x8x9x8 k=8 filter=3x3 padding=1"
    products = _PRODUCT, f"{_PRODUCT} layout=NHWC", _COPIED
    lines += [f"{op} {problem} data=integers into=out" for op in FAMILY_OPS for problem in products]
    lines += [f"{op} {sums}" for op in FAMILY_OPS]
    lines += [f"{op} {sums} alpha=0.5 beta=-1.25 into=out layout=NHWC" for op in FAMILY_OPS if op != _ALL_GRADIENTS]
    lines += [f"{op} {sums} data=integers beta=1.0 into=out" for op in FAMILY_OPS]
    lines += [f"{op} {problem} layout=NHWC" for op in FAMILY_OPS for problem in _IN_EIGHTS]
    lines += [
        f"{op} {problem} layout=NHWC data=integers {_over(op)} into=out" for op in FAMILY_OPS for problem in _IN_BLOCKS
    ]
    lines += [f"{op} {_SOLID}{layout}" for op in FAMILY_OPS for layout in ("", " layout=NHWC")]
    lines += [f"conv_forward {image} activation={mode}" for mode in _ACTIVATIONS]
    lines += [
        *(
            f"conv_forward {shape} layout=NHWC residual=1 scaled=1 alpha1=-0.5 alpha2=0.75 activation={mode}"
            for shape in (
                "shape=2x8x7x6 k=8 filter=3x3 groups=8 padding=1",
                "shape=2x3x7x6 k=6 filter=3x3 groups=3 padding=1",
                _FIRST,
            )
            for mode in _FUSED
        ),
        "conv_forward shape=2x0x3x3 k=2 filter=1x1 into=out",  # act(b)
        "conv_forward shape=2x2x0x3 k=2 filter=1x2 padding=1-0x0 into=out",  # an image of padding alone
        f"conv_forward {image} bias=0 residual=1 data=integers into=out",
        f"conv_forward {image} residual=1 data=lopsided activation=relu into=in_place",
        f"conv_forward {image} residual=1 scaled=1 data=lopsided activation=relu layout=NHWC into=out",
        f"conv_forward {image} residual=1 scaled=1 activation=swish alpha1=-0.5 alpha2=0.75 layout=NHWC",
        f"conv_forward {image} residual=1 alpha1=0.5 alpha2=2.0 data=powers place=offset",
        f"conv_forward {image} residual=1 scaled=1 alpha=0.5 beta=2.0 activation=tanh into=out",
        f"conv_forward {image} data=special ends=0",
        *(f"conv_forward {_IN_EIGHTS[k]} layout=NHWC residual=1 activation=swish" for k in (0, 2)),
        *(f"conv_forward {problem} sums=1{layout}" for problem in _SUMMED for layout in ("", " layout=NHWC")),
        f"conv_transpose_forward {image} bias=0",
        f"conv_transpose_backward {image} needs=db",
        *(f"conv_transpose_backward {problem} layout=NHWC needs=dx" for problem in (_IN_EIGHTS[-2], _FIRST)),
        f"conv_transpose_backward {image} needs=dx,dw data=integers",
    ]
    return tuple(lines)


_GRADIENT = Primitive(draw_backward, bound_gradient, into_gradient)
_PRIMITIVES = {
    "conv_forward": Primitive(draw_forward, bound_forward, into_forward, reference=exact_reference),
    "conv_backward_data": _GRADIENT,
    "conv_backward_filter": _GRADIENT,
    "conv_backward_bias": _GRADIENT,
    "conv_transpose_forward": Primitive(draw_transposed, bound_transposed, into_transposed),
    "conv_transpose_backward": Primitive(
        draw_transposed_backward, bound_transposed_gradients, into_transposed_gradients
    ),
}
FAMILY_OPS = tuple(_PRIMITIVES)
_ALL_GRADIENTS = "conv_transpose_backward"
_SPARSE = ("conv_backward_data", "conv_backward_filter", _ALL_GRADIENTS)

FAMILY = CaseFamily("convolution", reference, _PRIMITIVES, _corners(), draw)
