"""Measure primitives beside their peers on one GPU: check first, then time, in one run.

``python tools/bench.py [family ...] [--dtype NAME ...] [--json FILE] [--megabytes N]``

Before a case is timed, the same primitive is held against the float64 reference on a conformance problem of the same
dtype and regime. Device times are medians over events with the L2 flushed before each repeat, ours and the peers'
interleaved so that a change of clocks meets all of them. Bytes are the fewest that the work must move and flops what
it must compute; the shares are of a copy and of a matrix product measured in the same run. Host times are wall times
per call on arrays of 1,024 elements, best of three passes over all callers. ``benchmarks/<gpu>/`` keeps the results
that back a claim.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cupy as cp
import torch
from torch.nn import functional as torch_functional

import dnnprims as dp
from dnnprims.conformance.cases import Problem
from dnnprims.conformance.runner import FAMILIES, run_case

#: Past the L2 many times over; long enough, too, for the host to enqueue a call before the device is ready for it.
FLUSH_BYTES = 1 << 30
ROUNDS = 21
HOST_CALLS = 20_000
HOST_ELEMENTS = 1024

Call = Callable[[], Any]
TORCH = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass
class Case:
    """One piece of work: ours, the peers', what it moves and computes, and the problem that checks it."""

    name: str
    problem: str
    ours: Call
    peers: dict[str, Call]
    nbytes: int = 0
    flops: int = 0


def random(shape: Sequence[int] | int, dtype: str, scale: float = 1.0) -> tuple[Any, Any]:
    """Return normal random numbers as a torch tensor and as a CuPy array over the same memory."""
    tensor = (torch.randn(shape, device="cuda") * scale).to(TORCH[dtype])
    return tensor, cp.from_dlpack(tensor)


def itemsize(dtype: str) -> int:
    """Bytes of an element."""
    return torch.empty(0, dtype=TORCH[dtype]).element_size()


def gradient(result: Any, leaf: Any, dy: Any) -> Call:
    """Torch's backward of a result that was computed once."""
    return lambda: torch.autograd.grad(result, leaf, dy, retain_graph=True)


# -- instruments -----------------------------------------------------------------------------------------------------


def device_times(calls: dict[str, Call]) -> dict[str, list[float]]:
    """Milliseconds of each call, interleaved."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    for call in calls.values():
        for _ in range(3):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        marks = []
        next(iter(calls.values()))()  # untimed: what follows a pause runs slower
        for name, call in calls.items():
            flush.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            marks.append((name, start, end))
        torch.cuda.synchronize()
        for name, start, end in marks:
            times[name].append(start.elapsed_time(end))
    return times


def host_times(calls: dict[str, Call]) -> dict[str, float]:
    """Microseconds of wall time per call, best of three passes over all of them."""
    best: dict[str, float] = {}
    for _ in range(3):
        for name, call in calls.items():
            for _ in range(300):
                call()
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(HOST_CALLS):
                call()
            torch.cuda.synchronize()
            micros = (time.perf_counter() - start) / HOST_CALLS * 1e6
            best[name] = min(best.get(name, micros), micros)
    return best


def copy_rate() -> float:
    """Bytes read and written per second by a device-to-device copy of 4 GiB."""
    source = torch.empty(1 << 30, dtype=torch.float32, device="cuda").normal_()
    target = torch.empty_like(source)
    times = device_times({"copy": lambda: target.copy_(source)})
    return 2 * source.nbytes / (statistics.median(times["copy"]) * 1e-3)


def measure_limits() -> dict[str, float]:
    """Bytes per second of a large copy, and flops per second of a large matrix product by dtype."""
    limits = {"copy": copy_rate()}
    n = 8192
    for dtype in ("bfloat16", "float16", "float32"):
        a, b = torch.randn(n, n, device="cuda").to(TORCH[dtype]), torch.randn(n, n, device="cuda").to(TORCH[dtype])
        times = device_times({"gemm": lambda a=a, b=b: a @ b})
        limits[dtype] = 2 * n**3 / (statistics.median(times["gemm"]) * 1e-3)
    return limits


# -- cases -----------------------------------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": torch_functional.gelu,
    "gelu_tanh": lambda x: torch_functional.gelu(x, approximate="tanh"),
    "swish": torch_functional.silu,
    "mish": torch_functional.mish,
    "softplus": torch_functional.softplus,
}


def activation_cases(handle: dp.Handle, dtype: str, nbytes: int) -> Iterator[Case]:
    """Forward and backward over one long vector."""
    count = nbytes // itemsize(dtype)
    (tx, x), (tdy, dy) = random(count, dtype, 2.0), random(count, dtype)
    y = cp.empty_like(x)
    for mode, torch_mode in ACTIVATIONS.items():
        yield Case(
            f"activation_forward.{mode}.{dtype}",
            f"activation_forward mode={mode} shape=65536",
            lambda mode=mode: dp.activation_forward(handle, mode, x, out=y),
            {"torch": lambda f=torch_mode: f(tx)},
            nbytes=2 * x.nbytes,
        )
        saved = {"y": dp.activation_forward(handle, mode, x)} if "y" in dp.backward_needs(mode) else {"x": x}
        leaf = tx.detach().requires_grad_()
        yield Case(
            f"activation_backward.{mode}.{dtype}",
            f"activation_backward mode={mode} shape=65536",
            lambda mode=mode, saved=saved: dp.activation_backward(handle, mode, dy, out=y, **saved),
            {"torch": gradient(torch_mode(leaf), leaf, tdy)},
            nbytes=3 * x.nbytes,
        )


def softmax_cases(handle: dp.Handle, dtype: str, nbytes: int) -> Iterator[Case]:
    """Rows of several lengths, forward and backward."""
    for cols in (128, 1024, 4096, 32768, 50304):
        rows = nbytes // (cols * itemsize(dtype))
        (tx, x), (tdy, dy) = random((rows, cols), dtype, 3.0), random((rows, cols), dtype)
        y = cp.empty_like(x)
        for algorithm, torch_op in (("accurate", torch.softmax), ("log", torch.log_softmax)):
            saved = dp.softmax_forward(handle, x, algorithm=algorithm)
            leaf = tx.detach().requires_grad_()
            settings = f"algorithm={algorithm} shape={max(1, 65536 // cols)}x{cols} axis=-1"
            yield Case(
                f"softmax_forward.{algorithm}.{rows}x{cols}.{dtype}",
                f"softmax_forward {settings}",
                lambda algorithm=algorithm: dp.softmax_forward(handle, x, algorithm=algorithm, out=y),
                {"torch": lambda f=torch_op: f(tx, -1)},
                nbytes=2 * x.nbytes,
            )
            yield Case(
                f"softmax_backward.{algorithm}.{rows}x{cols}.{dtype}",
                f"softmax_backward {settings}",
                lambda a=algorithm, s=saved: dp.softmax_backward(handle, dy, s, algorithm=a, out=y),
                {"torch": gradient(torch_op(leaf, -1), leaf, tdy)},
                nbytes=3 * x.nbytes,
            )


def loss_cases(handle: dp.Handle, dtype: str, nbytes: int) -> Iterator[Case]:
    """Cross-entropy forward and backward in one pass over the logits, and mean squared error."""
    cross_entropy = dp.LossDescriptor("cross_entropy", reduction="mean_elements")
    for classes in (1024, 32768, 50304):
        rows = nbytes // (classes * itemsize(dtype))
        tx, x = random((rows, classes), dtype, 2.0)
        labels = torch.randint(0, classes, (rows,), device="cuda")
        there, dx = cp.from_dlpack(labels), cp.empty_like(x)
        leaf = tx.detach().requires_grad_()
        yield Case(
            f"cross_entropy_forward_backward.{rows}x{classes}.{dtype}",
            f"loss_forward_backward kind=cross_entropy reduction=mean_elements shape={65536 // classes}x{classes}",
            lambda x=x, t=there, dx=dx: dp.loss_forward_backward(handle, cross_entropy, x, t, dprediction=dx),
            {"torch": lambda leaf=leaf, t=labels: torch.autograd.grad(torch_functional.cross_entropy(leaf, t), leaf)},
            nbytes=2 * x.nbytes,
        )
    (tx, x), (tt, t) = random(nbytes // itemsize(dtype), dtype), random(nbytes // itemsize(dtype), dtype)
    dx, leaf = cp.empty_like(x), tx.detach().requires_grad_()
    mse = dp.LossDescriptor("mse", reduction="mean_elements")
    yield Case(
        f"mse_forward_backward.{x.size}.{dtype}",
        "loss_forward_backward kind=mse reduction=mean_elements shape=65536",
        lambda: dp.loss_forward_backward(handle, mse, x, t, dprediction=dx),
        {"torch": lambda: torch.autograd.grad(torch_functional.mse_loss(leaf, tt), leaf)},
        nbytes=3 * x.nbytes,
    )


def optimizer_cases(handle: dp.Handle, dtype: str, nbytes: int) -> Iterator[Case]:
    """SGD with momentum and AdamW over 32 large tensors; SGD over 1,000 small ones."""
    for label, count, size in (("32 large", 32, nbytes // 4 // 8), ("1000 small", 1000, 10_000)):
        pairs = [random(size, dtype) for _ in range(count)]
        grads = [random(size, dtype) for _ in range(count)]
        states = [[cp.zeros(size, "float32") for _ in range(count)] for _ in range(3)]
        weights, gradients = [x for _, x in pairs], [x for _, x in grads]
        leaves = [t.detach().clone().requires_grad_() for t, _ in pairs]
        for leaf, (t, _) in zip(leaves, grads, strict=True):
            leaf.grad = t.clone()
        sgd = torch.optim.SGD(leaves, lr=1e-6, momentum=0.9, fused=True)
        adamw = torch.optim.AdamW(leaves, lr=1e-6, fused=True)
        moved = count * size * (3 * itemsize(dtype))
        yield Case(
            f"sgd_momentum.{label}.{dtype}",
            "sgd_update shapes=1000,65537 momentum=0.5",
            lambda w=weights, g=gradients, v=states[0]: dp.sgd_update(handle, w, g, v, lr=1e-6, momentum=0.9),
            {"torch fused": sgd.step},
            nbytes=moved + count * size * 8,
        )
        yield Case(
            f"adamw.{label}.{dtype}",
            "adamw_update shapes=1000,65537",
            lambda w=weights, g=gradients, s=states: dp.adamw_update(handle, w, g, s[1], s[2], lr=1e-6, step=1),
            {"torch fused": adamw.step},
            nbytes=moved + count * size * 16,
        )


#: batch x in x out: of the demo's kind, of transformers, large, small batch.
FC_SHAPES = ((8192, 784, 2048), (16384, 1024, 4096), (8192, 8192, 8192), (128, 4096, 4096))
FC_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {name: ACTIVATIONS[name] for name in ("relu", "gelu_tanh", "swish")}


def fc_cases(handle: dp.Handle, dtype: str, nbytes: int) -> Iterator[Case]:
    """Forward with bias and activation, and the whole backward."""
    for m, k, n in FC_SHAPES:
        (tx, x), (tw, w), (tb, b) = random((m, k), dtype), random((n, k), dtype, k**-0.5), random(n, dtype)
        (tdy, dy), y = random((m, n), dtype), cp.empty((m, n), x.dtype)
        for mode, torch_mode in FC_ACTIVATIONS.items():
            yield Case(
                f"fc_forward.{mode}.{m}x{k}x{n}.{dtype}.{handle.math}",
                f"fc_forward rows=65 k=96 n=72 activation={mode} math={handle.math}",
                lambda mode=mode: dp.fc_forward(handle, x, w, b, activation=mode, out=y),
                {"torch": lambda f=torch_mode: f(torch_functional.linear(tx, tw, tb))},
                flops=2 * m * k * n,
            )
        leaves = [t.detach().requires_grad_() for t in (tx, tw, tb)]
        result = torch.relu(torch_functional.linear(*leaves))
        out = dp.fc_forward(handle, x, w, b, activation="relu")
        dx, dw, db = cp.empty_like(x), cp.empty_like(w), cp.empty_like(b)
        yield Case(
            f"fc_backward.relu.{m}x{k}x{n}.{dtype}.{handle.math}",
            f"fc_backward rows=65 k=96 n=72 activation=relu math={handle.math}",
            lambda out=out: dp.fc_backward(handle, dy, x, w, activation="relu", y=out, dx=dx, dw=dw, db=db),
            {"torch": lambda r=result, t=leaves: torch.autograd.grad(r, t, tdy, retain_graph=True)},
            flops=4 * m * k * n,
        )


FAMILY_CASES: dict[str, Callable[[dp.Handle, str, int], Iterator[Case]]] = {
    "activation": activation_cases,
    "softmax": softmax_cases,
    "loss": loss_cases,
    "optimizer": optimizer_cases,
    "fc": fc_cases,
}


def host_records(handle: dp.Handle) -> Iterator[dict[str, Any]]:
    """Host time per call of ours and of torch's calls of the same kind, all in one pass."""
    (tx, x), (tw, w) = random(HOST_ELEMENTS, "float32"), random((64, 64), "float32")
    (tb, b), ty, y = random(64, "float32"), torch.empty_like(tx), cp.empty_like(x)
    rows, trows = x.reshape(16, 64), tx.reshape(16, 64)
    z = cp.empty((16, 64), "float32")
    plan = dp.prepare(dp.activation_forward, handle, "sigmoid", x, out=y)
    calls: dict[str, Call] = {
        "torch.sigmoid(out=)": lambda: torch.sigmoid(tx, out=ty),
        "activation_forward(out=)": lambda: dp.activation_forward(handle, "sigmoid", x, out=y),
        "plan(x, out=y)": lambda: plan(x, out=y),
        "torch.relu": lambda: torch.relu(tx),
        "activation_forward": lambda: dp.activation_forward(handle, "relu", x),
        "torch linear + relu": lambda: torch.relu(torch_functional.linear(trows, tw, tb)),
        "fc_forward(out=)": lambda: dp.fc_forward(handle, rows, w, b, activation="relu", out=z),
    }
    for name, micros in host_times(calls).items():
        yield {"name": f"host.{name}", "us": round(micros, 2)}


# -- the run ---------------------------------------------------------------------------------------------------------


def checked(handle: dp.Handle, case: Case, dtype: str) -> str:
    """Complaint about the primitive on the case's problem; empty when it agrees with the reference."""
    problem = Problem.parse(case.problem, dtype=dtype, seed=0)
    family = next(family for family in FAMILIES.values() if problem.op in family.makers)
    return run_case(handle, family, problem).complaint


def record(case: Case, limits: dict[str, float], dtype: str) -> dict[str, Any]:
    """Time a case and its peers."""
    times = device_times({"ours": case.ours, **case.peers})
    ours = statistics.median(times["ours"])
    tenths = statistics.quantiles(times["ours"], n=10)
    line: dict[str, Any] = {
        "name": case.name,
        "ms": round(ours, 5),
        "p10": round(tenths[0], 5),
        "p90": round(tenths[-1], 5),
    }
    if case.nbytes:
        rate = case.nbytes / (ours * 1e-3)
        line |= {"TBps": round(rate * 1e-12, 3), "of_copy": round(rate / limits["copy"], 3)}
    if case.flops:
        line["TFLOPs"] = round(case.flops / (ours * 1e-3) * 1e-12, 1)
    for peer in case.peers:
        line[f"{peer} ms"] = round(statistics.median(times[peer]), 5)
        line[f"times faster than {peer}"] = round(statistics.median(times[peer]) / ours, 3)
    return line


def current_commit() -> str:
    """Short name of the commit that is checked out, empty outside a checkout."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def environment(commit: str) -> dict[str, Any]:
    """What the numbers were measured with."""
    return {
        "name": "environment",
        "gpu": torch.cuda.get_device_name(),
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "dnnprims": dp.__version__,
        "cupy": cp.__version__,
        "torch": torch.__version__,
        "command": " ".join(["python", *sys.argv]),
    }


def main() -> int:
    """Run the families asked for; 1 when a check failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", nargs="*", choices=["host", *FAMILY_CASES], help="all where none is named")
    parser.add_argument("--dtype", nargs="*", default=["float32", "bfloat16"], choices=TORCH)
    parser.add_argument("--math", default="ieee", choices=["ieee", "tf32"])
    parser.add_argument("--megabytes", type=int, default=1024, help="of the largest tensor")
    parser.add_argument("--commit", help="named in the results where this is no checkout")
    parser.add_argument("--json", type=Path, help="append the results to this file")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = arguments.math == "tf32"
    handle = dp.create_handle("cuda", math=arguments.math)
    families = arguments.family or ["host", *FAMILY_CASES]
    failed = 0

    def emit(line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)
        if arguments.json:
            with arguments.json.open("a") as file:
                file.write(json.dumps(line) + "\n")

    emit(environment(arguments.commit or current_commit()))
    if "host" in families:
        for line in host_records(handle):
            emit(line)
    if set(families) == {"host"}:
        return 0
    limits = measure_limits()
    emit({"name": "limits", **{name: round(rate * 1e-12, 3) for name, rate in limits.items()}})
    for family in (name for name in families if name != "host"):
        for dtype in arguments.dtype:
            for case in FAMILY_CASES[family](handle, dtype, arguments.megabytes << 20):
                complaint = checked(handle, case, dtype)
                failed += bool(complaint)
                emit({"name": case.name, "failed": complaint} if complaint else record(case, limits, dtype))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
