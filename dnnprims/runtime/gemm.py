"""Row-major matrix products with epilogues: through cuBLASLt, or through the plain kernel of ``kernels/gemm.cu``.

This module alone knows that cuBLASLt is column-major. A row-major C is the column-major transpose, so
`C = op(A) op(B)` is asked for as `C^T = op(B)^T op(A)^T`: the operands change places, each keeps its memory, its
leading dimension and its transposition, and a bias along the columns of C lies along the rows of C^T, as the library
wants it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ..dtypes import DType
from . import blaslt
from .launch import NULL, Family, Kernel, KernelStep, Pointer, Profile, Struct, blocks_for
from .tuning import Configuration, product_key

#: Enqueue: addresses by slot, stream, live scalars; see `plan.Run`.
Run = Callable[[Sequence[int], int, Sequence[Any]], Callable[[], object] | None]

#: Epilogue -> what cuBLASLt calls it. `C = f(alpha * op(A) op(B) + beta * C + bias)`; aux keeps the argument of f.
EPILOGUES = {
    "none": blaslt.EPILOGUE_DEFAULT,
    "bias": blaslt.EPILOGUE_BIAS,
    "relu": blaslt.EPILOGUE_RELU,
    "relu_bias": blaslt.EPILOGUE_RELU_BIAS,
    "gelu_tanh": blaslt.EPILOGUE_GELU,
    "gelu_tanh_bias": blaslt.EPILOGUE_GELU_BIAS,
    "gelu_tanh_aux": blaslt.EPILOGUE_GELU_AUX,
    "gelu_tanh_aux_bias": blaslt.EPILOGUE_GELU_AUX_BIAS,
}

#: The most workspace that a product asks the handle for. More did not pay on the GPUs measured.
WORKSPACE_BYTES = 32 << 20

#: Elements of a 16-bit AUX that its leading dimension must be a multiple of. The library does not check it, and dies of
#: a misaligned address that takes the context along.
AUX_LANES = 8

_PARAMS = Struct(
    "GemmParams",
    ("c", "a", "b", "bias"),
    (
        ("alpha", "A"),
        ("beta", "A"),
        ("m", "i64"),
        ("n", "i64"),
        ("k", "i64"),
        ("a_row", "i64"),
        ("a_column", "i64"),
        ("b_row", "i64"),
        ("b_column", "i64"),
        ("c_row", "i64"),
    ),
)
_TILED = Kernel("gemm", "gemm_tiled", _PARAMS)
#: Rows and columns of C that one block of the plain kernel makes, and its threads.
TILE, THREADS = 64, 256


def _instances(dtype: DType) -> dict[str, list[str]]:
    return {"all": [f"gemm_tiled<{dtype.cuda}>"]}


GEMM_FAMILY = Family("gemm", (_TILED,), _instances)


@dataclass(frozen=True)
class Matrix:
    """A row-major operand of a product: where it is, its leading dimension, and whether it enters transposed.

    `step` are the elements to that of the next product, where there are several.
    """

    pointer: Pointer
    leading: int
    transposed: bool = False
    alignment: int = 16
    step: int = 0


@dataclass(frozen=True)
class GemmStep:
    """`C[m, n] = f(alpha * op(A)[m, k] op(B)[k, n] + beta * C + bias[n])`, row-major, through cuBLASLt.

    Attributes
    ----------
    dtype : DType
        Of A, B, C, bias and aux; products are summed in its accumulator.
    m, n, k : int
        Extents, all positive.
    a, b, c : Matrix
        Operands; C is not transposed.
    epilogue : str
        A key of `EPILOGUES`.
    bias : int, Scratch or Named
        Vector of n elements, aligned to an element, where the epilogue has one.
    aux : Matrix, optional
        Receives the argument of f, where the epilogue has one.
    alpha, beta : float
        Factors, in the accumulator's type.
    math : str
        ``ieee``: float32 products are float32; ``tf32``: they may be TF32. Other types do not care.
    workspace : int, Scratch or Named
        Scratch that the library may use, of `workspace_bytes`.
    batch : int
        How many such products there are.
    sums : bool
        Whether C takes the sums as they are, in the accumulator's type.
    algorithm : tuple of int
        Configuration of the library's algorithm to take, where it offers that one; else its own choice.
    fallback : tuple of KernelStep
        Kernels that compute the same, run where the library is absent or refuses.
    """

    dtype: DType
    m: int
    n: int
    k: int
    a: Matrix
    b: Matrix
    c: Matrix
    epilogue: str = "none"
    bias: Pointer = NULL
    aux: Matrix | None = None
    alpha: float = 1.0
    beta: float = 0.0
    math: str = "ieee"
    workspace: Pointer = NULL
    workspace_bytes: int = 0
    batch: int = 1
    sums: bool = False
    algorithm: Configuration = ()
    fallback: tuple[KernelStep, ...] = field(default=())

    @property
    def own_pointers(self) -> tuple[Pointer, ...]:
        """What the library is given: a, b, c, bias, aux, workspace."""
        aux = self.aux.pointer if self.aux else NULL
        return (self.a.pointer, self.b.pointer, self.c.pointer, self.bias, aux, self.workspace)

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        """Every pointer of the step, those of the fallback last."""
        return self.own_pointers + tuple(pointer for kernel in self.fallback for pointer in kernel.pointers)

    @property
    def problem(self) -> blaslt.MatmulProblem:
        """The same product as the library is asked for it: column-major, operands exchanged."""
        double = self.dtype.accumulator == "float64"
        fast = self.math == "tf32" and self.dtype.name == "float32"
        single = blaslt.COMPUTE_32F_FAST_TF32 if fast else blaslt.COMPUTE_32F
        return blaslt.MatmulProblem(
            m=self.n,
            n=self.m,
            k=self.k,
            trans_a=self.b.transposed,
            trans_b=self.a.transposed,
            lda=self.b.leading,
            ldb=self.a.leading,
            ldd=self.c.leading,
            input_type=self.dtype.cublas,
            output_type=(self.dtype.acc if self.sums else self.dtype).cublas,
            compute_type=blaslt.COMPUTE_64F if double else single,
            scale_type=blaslt.SCALE_64F if double else blaslt.SCALE_32F,
            epilogue=EPILOGUES[self.epilogue],
            has_bias="bias" in self.epilogue,
            ld_aux=self.aux.leading if self.aux else 0,
            alpha=self.alpha,
            beta=self.beta,
            alignments=(self.b.alignment, self.a.alignment, self.c.alignment),
            workspace_bytes=self.workspace_bytes,
            batches=(self.batch, self.b.step, self.a.step, self.c.step) if self.batch > 1 else (),
        )


def aux_reason(dtype: DType, leading: int, alignment: int) -> str | None:
    """Why cuBLASLt must not be given this AUX, or None. Its own checks let some of these through and then crash."""
    if dtype.itemsize != 2:
        return f"aux by the epilogue is slower than a pass of its own for {dtype.name}"
    if leading % AUX_LANES:
        return f"rows of aux are {leading} elements, not a multiple of {AUX_LANES}"
    if alignment < blaslt.FULL_ALIGNMENT:
        return f"aux is aligned to {alignment} bytes, not to {blaslt.FULL_ALIGNMENT}"
    return None


def lt_reason(profile: Profile, m: int, n: int, k: int) -> str | None:
    """Why this product cannot go to cuBLASLt, or None."""
    if not profile.blaslt:
        return "no cuBLASLt here"
    if not (m and n and k):
        return "an extent is 0"
    return None


def workspace_for(profile: Profile, taken: int = 0) -> int:
    """Bytes of workspace for a product, `taken` being what the rest of the plan uses of the handle's limit."""
    if profile.workspace_limit < 0:
        return WORKSPACE_BYTES
    return max(0, min(WORKSPACE_BYTES, profile.workspace_limit - taken)) // 256 * 256


def tiled_gemm(step: GemmStep) -> KernelStep:
    """Return the plain kernel for the product before its activation; it goes to aux where there is one. k may be 0."""
    a, b = ((1, x.leading) if x.transposed else (x.leading, 1) for x in (step.a, step.b))
    target = step.aux or step.c
    return KernelStep(
        kernel=_TILED,
        dtype=step.dtype,
        template=(step.dtype.cuda,),
        group="all",
        grid=blocks_for(-(-step.m // TILE) * -(-step.n // TILE), 1),
        block=THREADS,
        pointers=(target.pointer, step.a.pointer, step.b.pointer, step.bias),
        scalars=(step.alpha, step.beta, step.m, step.n, step.k, *a, *b, target.leading),
    )


def lower(profile: Profile, step: GemmStep, after: tuple[KernelStep, ...] = ()) -> tuple[GemmStep | KernelStep, ...]:
    """Return the steps of a product: through cuBLASLt where the profile has it, else by the plain kernel.

    `after` are the passes that apply the activation; where the epilogue does so itself they are only part of the
    fallback.
    """
    tiled = tiled_gemm(step)
    if lt_reason(profile, step.m, step.n, step.k):
        return (tiled, *after)
    step = replace(step, math=profile.math, workspace=step.workspace if step.workspace_bytes else NULL)
    step = replace(step, algorithm=profile.tuned.algorithm(product_key(step.problem)))
    if step.epilogue in ("none", "bias"):
        return (replace(step, fallback=(tiled,)), *after)
    return (replace(step, fallback=(tiled, *after)),)


def realise_gemm(step: GemmStep, slots: tuple[int, ...], executor: Any) -> Run:
    """Prepare the product; the callable then enqueues it, given addresses by slot, a stream and live scalars.

    `slots` are the places of `step.pointers` in the addresses. Where cuBLASLt refuses the problem, the callable runs
    the fallback, whose kernels `executor` realises.
    """
    try:
        handle, sm_count = blaslt.device_handle(executor.device), executor.profile.sm_count
        plan = blaslt.MatmulPlan(handle, step.problem, step.algorithm, sm_count=sm_count)
    except blaslt.LtError as error:
        if error.status not in blaslt.REFUSALS:
            raise
        return _realise_fallback(step, slots[len(step.own_pointers) :], executor)
    return _bind(step, plan, slots, executor)


def _realise_fallback(step: GemmStep, slots: tuple[int, ...], executor: Any) -> Run:
    runs, at = [], 0
    for kernel in step.fallback:
        runs.append(executor.realise(kernel, slots[at : at + len(kernel.pointers)]))
        at += len(kernel.pointers)

    def run(addresses: Sequence[int], stream: int, live: Sequence[Any]) -> None:
        for enqueue in runs:
            enqueue(addresses, stream, live)

    return run


def _bind(step: GemmStep, plan: blaslt.MatmulPlan, slots: tuple[int, ...], executor: Any) -> Run:
    """Bind what stays: a call is one entry into the library, and one more for each side pointer that moved.

    The library may offer an algorithm and refuse to run it (seen for 16-bit matrices that are aligned to their element
    alone, with a bias); nothing was enqueued then, and this plan goes over to the fallback for good.
    """
    at_a, at_b, at_c, at_bias, at_aux, at_work = slots[: len(step.own_pointers)]
    has_bias, has_aux, bias, aux = plan.problem.has_bias, step.aux is not None, plan.bias, plan.aux
    alpha, beta = ctypes.addressof(plan.alpha), ctypes.addressof(plan.beta)
    matmul, lt, descriptor, a, b, d = plan.matmul, plan.handle.value, plan.descriptor, plan.a, plan.b, plan.d
    algorithm, wanted = ctypes.addressof(plan.choice.algorithm), plan.choice.workspace_bytes

    fallback: Run | None = None

    def run(addresses: Sequence[int], stream: int, live: Sequence[Any]) -> Callable[[], object] | None:
        nonlocal fallback
        if fallback is not None:
            return fallback(addresses, stream, live)
        if has_bias and addresses[at_bias] != bias.value:
            plan.set_bias(addresses[at_bias])
        if has_aux and addresses[at_aux] != aux.value:
            plan.set_aux(addresses[at_aux])
        c = addresses[at_c]
        status = matmul(
            lt, descriptor, alpha, addresses[at_b], a, addresses[at_a], b, beta, c, d, c, d,
            algorithm, addresses[at_work], wanted, stream,
        )  # fmt: skip
        if status == 0:
            return partial(
                matmul, lt, descriptor, alpha, addresses[at_b], a, addresses[at_a], b, beta, c, d, c, d,
                algorithm, addresses[at_work], wanted, stream,
            )  # fmt: skip
        if status not in blaslt.REFUSALS or not step.fallback:
            raise _failure(step, plan, addresses, slots, status)
        fallback = _realise_fallback(step, slots[len(step.own_pointers) :], executor)
        return fallback(addresses, stream, live)

    return run


def _failure(
    step: GemmStep, plan: blaslt.MatmulPlan, addresses: Sequence[int], slots: tuple[int, ...], status: int
) -> blaslt.LtError:
    words = blaslt.status_words(status)
    at = [addresses[slot] for slot in slots[:3]]
    aligned = ", ".join(f"{name} {address & -address}" for name, address in zip("abc", at, strict=True))
    return blaslt.LtError(
        "cublasLtMatmul",
        status,
        f"{words} for {step.epilogue}, {step.dtype}, m={step.m}, n={step.n}, k={step.k}, alignments {aligned}, "
        f"workspace {plan.choice.workspace_bytes}",
    )
