"""Cases of losses: every kind under every reduction, labels that are ignored, weights, rows of each length."""

from __future__ import annotations

from ...descriptors import LOSS_KINDS, REDUCTIONS
from ...reference import loss as reference
from ..calls import Generator, Primitive
from ..cases import CaseFamily
from ..drawing import draw_placing, draw_shape, pick, show
from .limits import bound_backward, bound_both, bound_forward, described, into_both, into_loss, into_prediction
from .operands import draw_backward, draw_both, draw_operands


def draw(rng: Generator) -> str:
    """A random kind, reduction and shape."""
    kind, op = pick(rng, *LOSS_KINDS), pick(rng, "loss_forward", "loss_backward", "loss_forward_backward")
    shape = tuple(max(extent, 1) for extent in draw_shape(rng, (1, 3), most=900))
    words = [f"kind={kind} reduction={pick(rng, *REDUCTIONS)} shape={show(shape)}"]
    if kind != "nll" or op == "loss_forward":  # nll's gradient is nearly all 0
        words.append(f"data={pick(rng, 'normal', 'normal', 'integers')}")
    if kind in ("cross_entropy", "nll"):
        words.append(f"labels={pick(rng, 'int32', 'int64')} ignored={pick(rng, '0.0', '0.3')}")
    if kind != "cosine":
        words.append(f"weight={int(rng.integers(2))}")
    if kind == "cross_entropy":
        words.append(f"label_smoothing={pick(rng, '0.0', '0.125')}")
    if op == "loss_backward":
        return f"{op} {' '.join(words)} dloss={int(rng.integers(2))} {draw_placing(rng)}"
    scale = f"scale={pick(rng, '1.0', '1024.0', '-0.5')}" if op == "loss_forward_backward" else ""
    return f"{op} {' '.join(words)} {scale} {draw_placing(rng, in_place=op != 'loss_forward', blend=False)}"


def _corners() -> tuple[str, ...]:
    lines = [
        "loss_forward kind=mse shape=0x3 reduction=sum",
        "loss_forward_backward kind=mse shape=1 into=out",
        "loss_forward_backward kind=mse shape=9001 reduction=mean_elements into=out",  # several parts of one sum
        "loss_backward kind=mse shape=33x7 place=offset dloss=1 alpha=0.5 beta=2.0 into=out",
        "loss_forward kind=cross_entropy shape=0x3 labels=int64 reduction=sum",
        "loss_backward kind=cross_entropy shape=9x5 labels=int32 ignored=1.0 reduction=mean_elements into=out",
        "loss_forward_backward kind=cross_entropy shape=7x10 labels=int64 ignored=0.3 weight=1 into=out",
        "loss_forward_backward kind=cross_entropy shape=7x10 label_smoothing=0.125 weight=1 into=out",  # probabilities
        "loss_forward_backward kind=cross_entropy shape=3x5x4x2 labels=int32 reduction=none into=out",
        "loss_forward_backward kind=cross_entropy shape=4x1000 labels=int64 into=in_place",
        "loss_forward_backward kind=cross_entropy shape=2x5001 labels=int64 place=offset into=out",
        "loss_forward_backward kind=cross_entropy shape=6x33 spread=500.0 labels=int64 only=float32,float64",
        "loss_backward kind=cosine shape=5x64 reduction=none dloss=1 into=in_place",
        "loss_forward kind=bce_with_logits shape=8x32 weight=1",
        "loss_forward kind=nll labels=int32 shape=9x32 ignored=0.3 weight=1 reduction=none",
        "loss_forward_backward kind=nll labels=int32 shape=9x32 ignored=0.3 weight=1 reduction=sum into=in_place",
        "loss_forward_backward kind=nll labels=int64 shape=3x2048 into=in_place",
        "loss_forward_backward kind=bce_with_logits shape=40x33 spread=60.0 into=out",  # exponentials vanish
    ]
    for kind in LOSS_KINDS:
        labels = "labels=int64 " if kind in ("cross_entropy", "nll") else ""
        lines += [
            f"loss_forward_backward kind={kind} {labels}shape=8x33 reduction={reduction} into=out"
            for reduction in REDUCTIONS
        ]
        lines.append(f"loss_backward kind={kind} {labels}shape=8x32 dloss=1 reduction=none")
    for kind in ("mse", "l1", "huber", "smooth_l1", "hinge", "nll"):
        words = f"kind={kind} shape=16x32 data=integers"
        op, scale = ("loss_forward", "") if kind == "nll" else ("loss_forward_backward", " scale=0.5")
        lines.append(f"{op} {words} reduction=mean_elements{scale} into=out")
        lines.append(f"loss_backward {words} weight=1 reduction=sum alpha=0.5 beta=1.0 into=out")
    # Rows of whole packs, in registers and in the shared memory of a block.
    for shape in ("37x128", "5x1000", "3x4096", "2x9000", "1x33000", "1x120000"):
        words = f"kind=cross_entropy labels=int64 shape={shape} ignored=0.3"
        lines.append(f"loss_forward {words} reduction=none weight=1")
        lines.append(f"loss_backward {words} reduction=mean_elements alpha=0.5 beta=1.0 into=out")
        lines.append(f"loss_forward_backward {words} reduction=mean_elements weight=1 into=in_place")
    # Rows in the shared memory of a block, and rows that are longer than it.
    for op in ("loss_forward", "loss_backward", "loss_forward_backward"):
        lines += [
            f"{op} kind=cross_entropy labels=int64 shape={shape} reduction=sum" for shape in ("2x17001", "1x117003")
        ]
        # Rows of cosine in a warp, in the registers of a block, and read more than once by packs and one by one.
        lines += [f"{op} kind=cosine shape={shape}" for shape in ("5x33", "5x64", "3x2000", "2x16392", "2x2049")]
    lines += [f"loss_forward kind={kind} shape=8x33 delta=0.5" for kind in ("huber", "smooth_l1")]
    return tuple(lines)


FAMILY = CaseFamily(
    "loss",
    reference,
    {
        "loss_forward": Primitive(draw_operands, bound_forward, into_loss, reference=described),
        "loss_backward": Primitive(draw_backward, bound_backward, into_prediction, reference=described),
        "loss_forward_backward": Primitive(draw_both, bound_both, into_both, reference=described),
    },
    _corners(),
    draw,
)
