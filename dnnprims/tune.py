"""``python -m dnnprims tune``: choose algorithms and variants by timing, and keep them in a file.

The problems are call lines, such as ``fc_forward x=bfloat16:64x128 w=bfloat16:10x128 b=bfloat16:10 activation=relu``,
files with one call line on each line, or layers. The file is used where ``create_handle(tuning=...)`` or
``DNNPRIMS_TUNING`` names it, on the same GPU with the same versions. Choices keep the bits of the untuned calls unless
``--other-bits`` is given, and are marked where they do not.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dnnprims
from dnnprims.problem import CallLine, Operand

FLOATS = ("float32", "float64", "float16", "bfloat16")


def main(argv: Sequence[str] | None = None) -> int:
    """Tune, merge or show; 0 when every problem could be tuned, 1 when one was refused."""
    given = _parser().parse_args(argv)
    known = dnnprims.Tuning()
    for path in given.merge:
        known = known.merged(dnnprims.Tuning.load(path, "tune", "--merge"))
    lines = list(_lines(given))
    code = 0
    if lines:
        if given.out and given.out.exists() and not given.merge:
            known = dnnprims.Tuning.load(given.out, "tune", "--out")
        known, code = _tune(lines, known, given)
    elif not given.merge:
        raise dnnprims.BadParamError(
            "tune", "has nothing to do", expected="call lines, files of them, --layer or --merge"
        )
    if given.out:
        known.save(given.out)
        print(f"wrote {len(known)} entries to {given.out}")
    if given.show or not given.out:
        print("\n".join(show(known)))
    return code


def show(tuning: Any) -> Iterator[str]:
    """A line for each entry."""
    for entry in sorted(tuning.entries.values(), key=lambda entry: (entry.device, entry.problem)):
        chosen = entry.variant or "algorithm " + ";".join(map(str, entry.algorithm))
        gain = entry.default_us / entry.tuned_us if entry.tuned_us else 1.0
        yield (
            f"{entry.device}, cuBLASLt {entry.cublaslt}, dnnprims {entry.dnnprims}: {entry.problem}: {chosen}, "
            f"{gain:.2f}x faster at {entry.tuned_us:.1f} us, {entry.bits} bits"
        )


def _tune(lines: Sequence[str], known: Any, given: argparse.Namespace) -> tuple[Any, int]:
    """Tune every problem; what is known of it already is tried again."""
    code, start = 0, time.perf_counter()
    for number, text in enumerate(lines, 1):
        print(f"[{number}/{len(lines)}] {time.perf_counter() - start:.1f} s  {text}", flush=True)
        try:
            line = CallLine.parse(text)
            op = getattr(dnnprims, line.op, None)
            if op not in dnnprims.PRIMITIVES:
                raise dnnprims.BadParamError("tune", "is no primitive", param="line", got=line.op)
            with dnnprims.create_handle(given.backend, device=given.device, **line.options) as handle:
                arguments = {name: _described(value) for name, value in line.arguments.items()}
                found = handle.tune(op, **arguments, other_bits=given.other_bits, tell=_tell)
        except dnnprims.DnnprimsError as error:
            print(f"  refused: {error}", file=sys.stderr)
            code = 1
            continue
        known = known.merged(found)
        if given.out:
            known.save(given.out)  # what is found is kept, also where a later problem takes the GPU along
    return known, code


def _tell(line: str) -> None:
    print(f"  {line}", flush=True)


def _described(value: Any) -> Any:
    """Descriptors in the place of operands, as no data are needed."""
    if isinstance(value, tuple | list):
        return type(value)(_described(item) for item in value)
    if not isinstance(value, Operand):
        return value
    itemsize = value.numpy.itemsize
    alignment = min(value.offset & -value.offset or 16, 16)
    return dnnprims.TensorDescriptor(
        value.shape, value.numpy, tuple(step // itemsize for step in value.steps), alignment
    )


def _lines(given: argparse.Namespace) -> Iterator[str]:
    """Call lines of the arguments, of files, and of layers."""
    for problem in given.problem:
        path = Path(problem)
        if " " not in problem and path.is_file():
            rows = path.read_text(encoding="utf-8").splitlines()
            yield from (row.strip() for row in rows if row.strip() and not row.lstrip().startswith("#"))
        else:
            yield problem
    for m, k, n in given.layer:
        for dtype in given.dtype or ["float32"]:
            for mode in given.activation or ["relu"]:
                yield from layer_lines(m, k, n, dtype, mode, given.math)


def layer_lines(m: int, k: int, n: int, dtype: str, activation: str, math: str) -> Iterable[str]:
    """The two calls of a training step of a layer of m samples, k inputs and n outputs."""
    x, w, b, y = (f"{dtype}:{extents}" for extents in (f"{m}x{k}", f"{n}x{k}", f"{n}", f"{m}x{n}"))
    kept = dnnprims.fc_backward_needs(activation)
    ending = f"activation={activation}" + (f" math={math}" if math != "ieee" else "")
    aux = f" aux={y}" if kept == ("aux",) else ""
    saved = f" {kept[0]}={y}" if kept else ""
    yield f"fc_forward x={x} w={w} b={b}{aux} {ending}"
    yield f"fc_backward dy={y} x={x} w={w}{saved} {ending}"


def _layer(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not SAMPLESxINPUTSxOUTPUTS, such as 8192x784x2048")
    return tuple(map(int, text.split("x")))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dnnprims tune",
        description=__doc__.split("\n\n", 1)[1],
        epilog=f"example: python -m dnnprims tune {shlex.join(['--layer', '8192x784x2048', '--dtype', 'bfloat16'])}",
    )
    add = parser.add_argument
    add("problem", nargs="*", help="call lines, or files of them")
    add(
        "--layer",
        type=_layer,
        action="append",
        default=[],
        metavar="MxKxN",
        help="samples, inputs, outputs; repeatable",
    )
    add("--dtype", choices=FLOATS, action="append", help="of layers; may be repeated (default float32)")
    add("--activation", action="append", help="of layers; may be repeated (default relu)")
    add("--math", choices=("ieee", "tf32"), default="ieee", help="of layers (default ieee)")
    add("--other-bits", action="store_true", help="also take what gives other bits, and mark it")
    add("--out", type=Path, help="file to write; entries that it has already stay")
    add("--merge", type=Path, action="append", default=[], metavar="FILE", help="take over entries; the last file wins")
    add("--show", action="store_true", help="print the entries")
    add("--backend", default="auto", choices=("auto", "cuda"))
    add("--device", type=int, help="number of the GPU")
    return parser
