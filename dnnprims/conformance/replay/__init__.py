"""``python -m dnnprims replay``: make one call again, check it against the float64 reference, time it.

The problem is a call line, as an error, a log line or a record has it; a case line, as ``verify`` prints it; or the
file of a record. Exit codes: 0 right, 1 wrong, 2 wrong usage, or a call that cannot be made from its line, 3 refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

import dnnprims

from ...problem import CallLine
from ..cases import Problem
from ..runner import run_case
from .checking import Finding, check, family_of
from .drawing import draw
from .loading import Recorded, load
from .memory import fill, place
from .timing import measure

RIGHT, WRONG, REFUSED = 0, 1, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay one problem and return the exit code."""
    given = _parser().parse_args(arguments)
    problem = load(" ".join(given.problem))
    checked, timed = given.check or not given.time, given.time
    if isinstance(problem, Problem):
        return _replay_case(problem, given, checked, timed)
    recorded = problem if isinstance(problem, Recorded) else None
    line = problem.line if isinstance(problem, Recorded) else problem
    return _replay_call(line, recorded, given, checked, timed)


def _replay_case(problem: Problem, given: Any, checked: bool, timed: bool) -> int:
    """A case of the suite, with its own data."""
    family, code = family_of(problem.op), RIGHT
    with dnnprims.create_handle(given.backend, math=problem.word("math", "ieee")) as handle:
        print(f"{problem}\non {handle.backend}")
        if checked:
            outcome = run_case(handle, family, problem)
            ratios = outcome.ratios
            worst = f"error over bound {ratios.max():.3g} max" if ratios.size else "no elements"
            print("right: " + worst if outcome.passed else f"wrong: {outcome.complaint}")
            code = RIGHT if outcome.passed else WRONG
        if timed:
            call = family.make(problem, np.random.default_rng(problem.integer("seed")))
            arrays = {name: _there(handle, value) for name, value in call.arguments.items()}
            op = getattr(dnnprims, problem.op)
            print("\n".join(measure(handle, lambda: op(handle, **arrays), given.repeat)))
    return code


def _there(handle: Any, value: Any) -> Any:
    if isinstance(value, list):
        return [_there(handle, item) for item in value]
    return handle.asarray(value) if isinstance(value, np.ndarray) else value


def _replay_call(line: CallLine, recorded: Recorded | None, given: Any, checked: bool, timed: bool) -> int:
    """A call from outside, with the data that were recorded or with some that are drawn."""
    family_of(line.op)
    if line.lost:
        raise dnnprims.BadParamError(
            "replay",
            "holds a value that the line cannot give back",
            param=", ".join(line.lost),
            got=str(line),
            expected="numbers, text, descriptors and arrays",
            hint="write something else in its place",
        )
    values = recorded.values if recorded is not None and recorded.values is not None else None
    data = "recorded data" if values is not None else f"data drawn from seed {given.seed}"
    with dnnprims.create_handle(given.backend, **line.options) as handle:
        print(f"{line}\non {handle.backend}, {data}")
        if recorded is not None:
            print(f"recorded on {recorded.where}" + (f"\nthere: {recorded.error}" if recorded.error else ""))
        inputs = values if values is not None else draw(line, np.random.default_rng(given.seed))
        code = RIGHT
        if checked:
            code = _report(check(handle, line, inputs, drawn=values is None))
        if timed and code != REFUSED:
            code = max(code, _time(handle, line, inputs, given.repeat))
        return code


def _report(found: Finding) -> int:
    if found.refusal is not None:
        return _report_refusal(found.refusal)
    print("\n".join(found.results))
    for complaint in found.complaints:
        print(f"wrong: {complaint}")
    if not found.complaints:
        print("right: every element within its bound, the same bits twice, nothing else changed")
    return WRONG if found.complaints else RIGHT


def _report_refusal(error: dnnprims.DnnprimsError) -> int:
    """A refusal is the library at its word; a failure is not."""
    refused = isinstance(error, dnnprims.BadParamError | dnnprims.NotSupportedError)
    print(f"{'refused' if refused else 'failed'}: {type(error).__name__}: {error}")
    return REFUSED if refused else WRONG


def _time(handle: Any, line: CallLine, values: Any, repeat: int | None) -> int:
    memory = place(handle, line, values)
    op, arguments = getattr(dnnprims, line.op), fill(line, memory.arrays)
    try:
        lines = measure(handle, lambda: op(handle, **arguments), repeat)
    except dnnprims.DnnprimsError as error:
        return _report_refusal(error)
    print("\n".join(lines))
    return RIGHT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dnnprims replay", description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("problem", nargs="+", help="a call line, a case line, or the file of a record")
    parser.add_argument("--backend", default="auto", choices=("auto", "numpy", "emulator", "cuda"))
    parser.add_argument("--check", action="store_true", help="hold the results against the reference; the default")
    parser.add_argument("--time", action="store_true", help="time the call; with --check both")
    parser.add_argument("--seed", type=int, default=0, help="of the data for a call line")
    parser.add_argument("--repeat", type=_positive, help="calls to time; as many as take some seconds where left out")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected at least 1")
    return number
