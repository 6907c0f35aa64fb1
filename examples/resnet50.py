"""Train ResNet-50 on the public API alone: random weights, a synthetic batch; images per second, and where time goes.

``python examples/resnet50.py`` on a GPU; beside PyTorch, eager and compiled, where that is installed (``--peers none``
leaves it out). ``--backend numpy --batch 2 --size 32 --width 8 --blocks 1,1,1,1 --dtype float32`` is small enough for a
CPU. `resnet50_step` has the network, as a list of calls that can be captured in a CUDA graph.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from resnet50_step import Step, make_step

import dnnprims as dp


def seconds(handle: dp.Handle, run: Callable[[], None], steps: int) -> float:
    """Of one step, host and device together."""
    handle.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        run()
    handle.synchronize()
    return (time.perf_counter() - start) / steps


def captured(step: Step) -> Callable[[], None]:
    """The step as one CUDA graph."""
    import cupy

    stream = cupy.cuda.get_current_stream()
    stream.begin_capture()
    step.run()
    graph = stream.end_capture()
    return lambda: graph.launch(stream)


def by_kind(step: Step) -> dict[str, float]:
    """Milliseconds of the calls of each kind."""
    import cupy

    marks = [cupy.cuda.Event() for _ in range(len(step.calls) + 1)]
    marks[0].record()
    for (_, call), mark in zip(step.calls, marks[1:], strict=True):
        call()
        mark.record()
    step.handle.synchronize()
    found: dict[str, float] = {}
    for (kind, _), *ends in zip(step.calls, marks, marks[1:], strict=False):
        found[kind] = found.get(kind, 0.0) + cupy.cuda.get_elapsed_time(*ends)
    return found


def tell(name: str, batch: int, duration: float) -> None:
    """One line."""
    print(f"{name:28}{batch / duration:9.1f} images/s {duration * 1e3:9.2f} ms a step", flush=True)


@contextmanager
def own_stream(handle: dp.Handle) -> Iterator[None]:
    """On CUDA a stream of its own, as the default one cannot be captured; the handle follows CuPy's current stream."""
    if handle.backend != "cuda":
        yield
        return
    import cupy

    with cupy.cuda.Stream(non_blocking=True):
        yield


def run(handle: dp.Handle, options: argparse.Namespace) -> None:
    """Train, and say how fast."""
    step, loss = make_step(handle, options)
    step.run()  # compiles, plans and makes workspaces
    first = float(handle.to_numpy(loss))
    tell(f"dnnprims, {handle.backend}", options.batch, seconds(handle, step.run, options.steps))
    if handle.backend == "cuda":
        tell("dnnprims, one CUDA graph", options.batch, seconds(handle, captured(step), options.steps))
        times = by_kind(step)
        for kind, ms in sorted(times.items(), key=lambda item: -item[1]):
            print(f"    {kind:24}{ms:9.2f} ms {ms / sum(times.values()):6.1%}")
    handle.check()
    print(f"loss {first:.4f} at first, loss {float(handle.to_numpy(loss)):.4f} at last", flush=True)


def peers(names: Sequence[str], options: argparse.Namespace) -> None:
    """The same network in PyTorch, where it is installed."""
    try:
        import resnet50_pytorch
    except ImportError:
        print("PyTorch is not installed")
        return
    for name in names:
        tell(f"PyTorch, {name}", options.batch, resnet50_pytorch.seconds(name, options))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("auto", "numpy", "emulator", "cuda"), default="auto")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="bfloat16")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224, help="of the images, a multiple of 32")
    parser.add_argument("--width", type=int, default=64, help="channels of the first convolution")
    parser.add_argument("--blocks", default="3,4,6,3", help="of each stage")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10, help="that are timed")
    parser.add_argument("--peers", default="eager,compile", help="PyTorch's ways, or none")
    options = parser.parse_args(arguments)
    options.blocks = [int(count) for count in options.blocks.split(",")]
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for."""
    options = parse(arguments)
    with dp.create_handle(options.backend) as handle:
        with own_stream(handle):
            run(handle, options)
        on_gpu = handle.backend == "cuda"
    if on_gpu and options.peers != "none":
        import cupy

        cupy.get_default_memory_pool().free_all_blocks()
        peers(options.peers.split(","), options)


if __name__ == "__main__":
    main()
