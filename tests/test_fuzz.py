"""Absurd arguments, drawn at random: refused in this library's words, within a second and without much memory.

``DNNPRIMS_FUZZ_EXAMPLES`` is the number of examples in all; the results of long runs are in docs/reliability.md.
"""

from __future__ import annotations

import os
import resource
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hypothesis
import numpy as np
import pytest
from conftest import HAS_COMPILER
from good_calls import GOOD
from hostile import (
    CLAIMS,
    Endless,
    Lying,
    Raised,
    anything,
    described,
    descriptor_arguments,
    like_array,
    like_descriptor,
    scaled,
    spoilt,
)
from hypothesis import strategies as st

import dnnprims as dp
from dnnprims import planning
from dnnprims.descriptors.activation import ACTIVATION_MODES
from dnnprims.descriptors.loss import LOSS_KINDS
from dnnprims.runtime.launch import KernelStep, Live, PlanSpec, Profile
from dnnprims.runtime.limits import MOST_BLOCKS

EXAMPLES = int(os.environ.get("DNNPRIMS_FUZZ_EXAMPLES") or 2_500)
#: What one example may take: CPU seconds, and bytes of memory beside what the process has.
SECONDS, HANGING_SECONDS, BYTES, LONGEST_MESSAGE = 1.0, 120, 1 << 28, 10_000

OPS = {op.__name__: op for op in dp.PRIMITIVES}
DESCRIBED = {name: {key: described(value) for key, value in make().items()} for name, make in GOOD.items()}


def examples(share: float) -> Callable[[Any], Any]:
    """That part of all examples, the same ones each time but in a long run."""
    return hypothesis.settings(
        max_examples=max(10, int(share * EXAMPLES)),
        deadline=None,
        database=None,
        derandomize=EXAMPLES <= 5_000,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate, hypothesis.Phase.shrink),
    )


@contextmanager
def limits() -> Iterator[None]:
    """One example: only documented errors, no hang, no absurd allocation."""

    def hang(*_: object) -> None:
        raise TimeoutError(f"hangs for {HANGING_SECONDS} s")

    with open("/proc/self/statm") as facts:
        pages = int(facts.read().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before, start = signal.signal(signal.SIGALRM, hang), time.process_time()
    signal.alarm(HANGING_SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, hard))
    try:
        yield
    except (dp.DnnprimsError, Raised) as error:
        if len(str(error)) > LONGEST_MESSAGE:
            raise OverflowError(f"a message of {len(str(error))} characters") from error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert time.process_time() - start < SECONDS


@contextmanager
def unless_misnamed(arguments: dict[str, Any]) -> Iterator[None]:
    """Python itself refuses an argument that the function does not have."""
    try:
        yield
    except TypeError:
        if "no_such_argument" not in arguments:
            raise


# -- descriptors -----------------------------------------------------------------------------------------------------


@examples(0.2)
@hypothesis.given(descriptor_arguments(), anything)
def test_tensor_descriptors(arguments: dict[str, Any], pointer: Any) -> None:
    """What is taken can be counted in 64 bits, hashed, and pasted back."""
    with limits():
        d = dp.TensorDescriptor(**arguments)
        assert 0 <= d.nbytes < 2**63
        if len(repr(d)) < 1_000:
            assert eval(repr(d), {"TensorDescriptor": dp.TensorDescriptor}) == d
        hash(d)
        d.bind(pointer)


@examples(0.1)
@hypothesis.given(
    st.one_of(st.sampled_from([*ACTIVATION_MODES]), anything),
    st.dictionaries(st.sampled_from(["ceiling", "slope", "alpha", "beta", "lambd", "low", "high", "x"]), anything),
)
def test_activation_descriptors(mode: Any, parameters: dict[str, Any]) -> None:
    """Parameters are finite numbers, or refused."""
    with limits():
        d = dp.ActivationDescriptor(mode, **parameters)
        assert all(np.isfinite(value) for _, value in d.parameters)
        assert d == dp.create_activation_descriptor(mode, **parameters)
        dp.fc_backward_needs(d)
        dp.backward_needs(d)


LOSS_OPTIONS = ["reduction", "delta", "ignore_index", "label_smoothing", "margin", "log_target"]


@examples(0.1)
@hypothesis.given(
    st.one_of(st.sampled_from(LOSS_KINDS), anything), st.dictionaries(st.sampled_from(LOSS_OPTIONS), anything)
)
def test_loss_descriptors(kind: Any, options: dict[str, Any]) -> None:
    """What is taken is an option of that kind, and can be hashed."""
    with limits():
        d = dp.LossDescriptor(kind, **options)
        assert hash(d) == hash(dp.create_loss_descriptor(kind, **options))


@examples(0.02)
@hypothesis.given(
    st.dictionaries(st.sampled_from(["device", "stream", "math", "deterministic", "workspace_limit"]), anything),
    anything,
)
def test_handles(options: dict[str, Any], value: Any) -> None:
    """Options of a handle, its streams and what becomes an array."""
    with limits(), dp.create_handle("numpy", **options) as handle:
        handle.set_stream(value)
    with limits():
        dp.create_handle(value)


# -- questions -------------------------------------------------------------------------------------------------------


def require_launchable(spec: PlanSpec) -> None:
    """Every grid can be launched and every number fits the type that it is passed in."""
    for step in spec.steps:
        if isinstance(step, KernelStep):
            assert all(0 < blocks <= most for blocks, most in zip(step.grid, MOST_BLOCKS, strict=True)), step
            constants = [0 if isinstance(s, Live) else s for s in step.scalars]
            struct.pack(step.kernel.struct.codes(step.dtype), *[0] * len(step.pointers), *constants)
    assert 0 <= spec.workspace_bytes < 2**63


def ask(op: Callable[..., Any], arguments: dict[str, Any], backend: str) -> None:
    """Every question about a call; the answers agree."""
    profile = Profile(backend, blaslt=backend == "cuda")
    support = dp.supports(op, profile=profile, **arguments)
    for question in (dp.workspace_size, dp.output_descriptors):
        options = {"profile": profile} if question is dp.workspace_size else {}
        try:
            question(op, **options, **arguments)
        except dp.DnnprimsError:
            assert not support or backend != "cuda"
    if support:
        require_launchable(planning._specify(op, profile, (), arguments))


def calls(name: str) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """Described calls of a primitive with some arguments spoilt."""
    return spoilt(DESCRIBED[name], like_descriptor).map(lambda arguments: (name, arguments))


@examples(0.25)
@hypothesis.given(st.sampled_from(list(OPS)).flatmap(calls), st.sampled_from(["cuda", "emulator"]))
def test_questions(call: tuple[str, dict[str, Any]], backend: str) -> None:
    """`supports` answers, or the arguments are wrong in number; what it says yes to can be launched."""
    name, arguments = call
    with limits(), unless_misnamed(arguments):
        ask(OPS[name], arguments, backend)


@examples(0.13)
@hypothesis.given(
    st.sampled_from(list(OPS)).flatmap(lambda name: scaled(DESCRIBED[name]).map(lambda arguments: (name, arguments))),
    st.sampled_from(["cuda", "emulator"]),
)
def test_questions_about_huge_tensors(call: tuple[str, dict[str, Any]], backend: str) -> None:
    """Extents up to 2^63 that fit each other: refused, or planned with grids and numbers that are in range."""
    with limits():
        ask(OPS[call[0]], call[1], backend)


# -- calls -----------------------------------------------------------------------------------------------------------


def real_calls(name: str) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """Calls of a primitive on small arrays with some arguments spoilt."""
    return spoilt(GOOD[name](), like_array).map(lambda arguments: (name, arguments))


EMULATOR = pytest.param("emulator", marks=pytest.mark.skipif(not HAS_COMPILER, reason="the emulator needs g++"))


@pytest.mark.parametrize("backend", ["numpy", EMULATOR])
@examples(0.1)
@hypothesis.given(call=st.sampled_from(list(OPS)).flatmap(real_calls), prepared=st.booleans())
def test_calls(backend: str, call: tuple[str, dict[str, Any]], prepared: bool) -> None:
    """Carried out, or refused in words, directly and through a plan."""
    name, arguments = call
    with np.errstate(all="ignore"), dp.create_handle(backend) as handle, limits(), unless_misnamed(arguments):
        if prepared:
            dp.prepare(OPS[name], handle, **arguments)
        else:
            OPS[name](handle, **arguments)
        handle.synchronize()


# -- what was found --------------------------------------------------------------------------------------------------


def _inside_itself() -> list[Any]:
    items: list[Any] = []
    items.append(items)
    return items


FOUND: dict[str, Callable[[], object]] = {
    "items without an end": lambda: dp.TensorDescriptor(Endless(), "float32"),
    "steps without an end": lambda: dp.TensorDescriptor((4,), "float32", Endless()),
    "generator of no extents": lambda: dp.TensorDescriptor(Lying(0, (2, "y"), None), "float32"),
    "more axes than an array has": lambda: dp.TensorDescriptor((1,) * 65, "float32"),
    "more bytes than 64 bits count": lambda: dp.TensorDescriptor((2**31, 2**30), "float32"),
    "more of them behind an empty axis": lambda: dp.TensorDescriptor((0, 2**62), "float32"),
    "steps beyond 64 bits": lambda: dp.TensorDescriptor((2, 2), "float32", (2**62, 1)),
    "comma as a dtype": lambda: dp.TensorDescriptor((), ","),
    "true as an alignment": lambda: dp.TensorDescriptor((2,), "float32", None, True),
    "address that is none": lambda: dp.TensorDescriptor((2,), "float32").bind(Lying(0, (), "x")),
    "no address for elements": lambda: dp.TensorDescriptor((2,), "float32").bind(0),
    "address beyond 64 bits": lambda: dp.TensorDescriptor((2,), "float32").bind(2**64),
    "array as a loss": lambda: dp.LossDescriptor(np.array([4, 5])),
    "complex number": lambda: dp.LossDescriptor("mse", delta=np.complex64(1j)),
    "array as a reduction": lambda: dp.LossDescriptor("mse", np.array([4, 5])),
    "number as a switch": lambda: dp.LossDescriptor("kl_div", log_target=2),
    "array as a stream": lambda: dp.create_handle("numpy", stream=np.array([4, 5])),
    "nothing as a stream": lambda: dp.create_handle("numpy", stream=CLAIMS[-6]()),
    "stream of nothing": lambda: dp.create_handle("numpy", stream=CLAIMS[-4]()),
    "array without steps": lambda: dp.output_descriptors(dp.set_tensor, CLAIMS[1](), 1.0),
    "array with letters for steps": lambda: dp.output_descriptors(dp.set_tensor, CLAIMS[3](), 1.0),
    "list within itself": lambda: dp.global_norm(dp.create_handle("numpy"), _inside_itself()),
    "too many blocks": lambda: dp.workspace_size(dp.set_tensor, dp.TensorDescriptor((2**43,), "float32"), 1.0),
    "too long a table of chunks": lambda: dp.workspace_size(dp.global_norm, [dp.TensorDescriptor((2**40,), "float32")]),
}


@pytest.mark.parametrize("what", FOUND)
def test_found(what: str) -> None:
    """The least examples of what earlier runs came upon."""
    with limits(), pytest.raises(dp.DnnprimsError):
        FOUND[what]()


def test_messages_are_short() -> None:
    """A value of a million characters is not repeated in full."""
    with pytest.raises(dp.BadParamError) as caught:
        dp.TensorDescriptor("x" * 10**6, "float32")
    assert len(str(caught.value)) < 1_000


def test_descriptors_of_the_same_elements_are_equal() -> None:
    """Steps along axes that have one element, or none, make no difference, and the repr gives the descriptor back."""
    plain, odd = dp.TensorDescriptor((1, 4), "float32"), dp.TensorDescriptor((1, 4), "float32", (77, 1))
    assert plain == odd
    assert eval(repr(odd), {"TensorDescriptor": dp.TensorDescriptor}) == odd


def test_limits_notice() -> None:
    """An error of another kind, an absurd allocation and a hang."""
    with pytest.raises(ZeroDivisionError), limits():
        raise ZeroDivisionError
    with pytest.raises(MemoryError), limits():
        np.ones(2 * BYTES, np.uint8)
    with pytest.raises(AssertionError), limits():
        spend(SECONDS)


def spend(seconds: float) -> None:
    """Compute for so long."""
    start = time.process_time()
    while time.process_time() < start + seconds:
        pass
