"""cuBLASLt through ctypes: the handle, and one prepared matrix product that costs a single library call to run.

Column-major, as the library sees the world; `gemm` translates. Nothing is loaded on import: the shared library is
located when the first CUDA handle asks for it.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..errors import ExecutionError
from .algorithms import CONFIGURATION, Algorithm, first_choice, missing

# cublasComputeType_t
COMPUTE_32F, COMPUTE_64F, COMPUTE_32F_FAST_TF32 = 68, 70, 77
# cudaDataType_t of alpha and beta
SCALE_32F, SCALE_64F = 0, 1
# cublasLtMatmulDescAttributes_t
DESC_TRANSA, DESC_TRANSB, DESC_EPILOGUE, DESC_BIAS_POINTER = 3, 4, 7, 8
DESC_AUX_POINTER, DESC_AUX_LD = 11, 12
# cublasLtMatrixLayoutAttribute_t
LAYOUT_BATCH_COUNT, LAYOUT_BATCH_STEP = 5, 6
# cublasLtMatmulPreferenceAttributes_t; the alignments are those of A, B, C and D
PREF_WORKSPACE_BYTES, PREF_REDUCTION_SCHEMES, PREF_ALIGNMENTS = 1, 3, (5, 6, 7, 8)
# cublasLtEpilogue_t
EPILOGUE_DEFAULT, EPILOGUE_RELU, EPILOGUE_BIAS, EPILOGUE_RELU_BIAS = 1, 2, 4, 6
EPILOGUE_GELU, EPILOGUE_GELU_BIAS, EPILOGUE_GELU_AUX, EPILOGUE_GELU_AUX_BIAS = 32, 36, 160, 164

# cublasLtReductionScheme_t for split-K. In place adds the parts to D in the order in which they arrive, so bits change
# between runs; in the output type a 16-bit D rounds every part. What is left keeps the parts in the workspace, in the
# compute type, and folds them in a fixed order.
REDUCTION_COMPUTE_TYPE = 2

#: Alignment that algorithms are free to assume; less must be told or the call is refused (status 15).
FULL_ALIGNMENT = 16

#: How many algorithms the heuristic is asked for by who takes `algorithms.first_choice`, and by who looks for another.
CANDIDATES, MOST_CANDIDATES = 8, 64

STATUS = {
    1: "not initialized",
    3: "allocation failed",
    7: "invalid value",
    8: "architecture mismatch",
    11: "mapping error",
    13: "execution failed",
    14: "internal error",
    15: "not supported",
}

#: The answers that mean "not this problem", for which there is a fallback: no algorithm, invalid value, not supported.
REFUSALS = (0, 7, 15)

_LOG_HINT = "set CUBLASLT_LOG_LEVEL=1 and CUBLASLT_LOG_FILE=<path> to have cuBLASLt say why"

_pointer, _int, _size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t


def status_words(status: int) -> str:
    """A status with its name."""
    return f"status {status} ({STATUS.get(status, 'unknown')})"


class LtError(ExecutionError):
    """A cuBLASLt call failed.

    Attributes
    ----------
    status : int
        The library's status; 0 where it answered but had no algorithm to offer.
    """

    def __init__(self, function: str, status: int, problem: str = "") -> None:
        self.status = status
        super().__init__(function, problem or status_words(status), hint=_LOG_HINT)


class HeuristicResult(ctypes.Structure):
    """``cublasLtMatmulHeuristicResult_t``: an opaque algorithm of 64 bytes and the workspace that it wants."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace_bytes", _size),
        ("state", _int),
        ("waves", ctypes.c_float),
        ("reserved", _int * 4),
    )


_SIGNATURES: dict[str, list[Any]] = {
    "cublasLtCreate": [_pointer],
    "cublasLtDestroy": [_pointer],
    "cublasLtMatmulDescCreate": [_pointer, _int, _int],
    "cublasLtMatmulDescDestroy": [_pointer],
    "cublasLtMatmulDescSetAttribute": [_pointer, _int, _pointer, _size],
    "cublasLtMatrixLayoutCreate": [_pointer, _int, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64],
    "cublasLtMatrixLayoutSetAttribute": [_pointer, _int, _pointer, _size],
    "cublasLtMatrixLayoutDestroy": [_pointer],
    "cublasLtMatmulPreferenceCreate": [_pointer],
    "cublasLtMatmulPreferenceDestroy": [_pointer],
    "cublasLtMatmulPreferenceSetAttribute": [_pointer, _int, _pointer, _size],
    "cublasLtMatmulAlgoInit": [_pointer] + [_int] * 7 + [_pointer],
    "cublasLtMatmulAlgoCheck": [_pointer] * 8,
    "cublasLtMatmulAlgoConfigGetAttribute": [_pointer, _int, _pointer, _size, _pointer],
    "cublasLtMatmulAlgoConfigSetAttribute": [_pointer, _int, _pointer, _size],
    "cublasLtMatmulAlgoGetHeuristic": [_pointer] * 7 + [_int, _pointer, _pointer],
    "cublasLtMatmul": [_pointer] * 14 + [_size, _pointer],
}


@cache
def library() -> tuple[Any, str]:
    """Return the loaded library and an empty string, or None and the reason why it is not there."""
    try:
        pathfinder = importlib.import_module("cuda.pathfinder")
    except ImportError:
        return None, "cuda-pathfinder is not installed"
    try:
        lib = ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib("cublasLt").abs_path)
        for name, argtypes in _SIGNATURES.items():
            function = getattr(lib, name)
            function.argtypes, function.restype = argtypes, _int
        lib.cublasLtGetVersion.argtypes, lib.cublasLtGetVersion.restype = [], _size
    except (RuntimeError, OSError, AttributeError) as error:  # pathfinder's own error is a RuntimeError
        return None, f"libcublasLt cannot be loaded ({str(error).splitlines()[0] if str(error) else error!r})"
    return lib, ""


def check(function: str, status: int) -> None:
    """Raise `LtError` unless the status is 0."""
    if status:
        raise LtError(function, status)


class LtHandle:
    """A cuBLASLt handle on the current device.

    Raises
    ------
    LtError
        The library is missing, or will not start here; the message says which.
    """

    def __init__(self) -> None:
        self.lib, reason = library()
        self.value: int | None = None
        if self.lib is None:
            raise LtError("cublasLtCreate", 0, reason)
        cell = _pointer()
        check("cublasLtCreate", self.lib.cublasLtCreate(ctypes.byref(cell)))
        self.value = cell.value

    @property
    def version(self) -> int:
        """Version of the library, as `major * 10000 + minor * 100 + patch`."""
        return int(self.lib.cublasLtGetVersion())

    def close(self) -> None:
        """Destroy the handle; every plan made with it must be gone."""
        if self.value is not None:
            value, self.value = self.value, None
            self.lib.cublasLtDestroy(value)


_handles: dict[int, LtHandle] = {}
_making = threading.Lock()


def device_handle(device: int) -> LtHandle:
    """Return the process's handle on `device`, which must be the current one.

    The library's handle may be shared by threads, so there is one per GPU. It is left to the end of the process: at
    exit the driver may be gone before it.

    A first product costs what the library takes to load, which nothing here shortens. On an NVIDIA H200, 2026-11-28, in
    a fresh process, milliseconds: handle 2.0, first heuristic 75 for eight algorithms (100 for one; 186 behind 1,715
    of the handle's with ``CUDA_MODULE_LOADING=EAGER``), second heuristic 0.2, first product 2.4; PyTorch's first
    ``linear`` 114.
    """
    with _making:
        if device not in _handles:
            _handles[device] = LtHandle()
        return _handles[device]


def available() -> bool:
    """Whether the library is there; that it starts shows with the first product."""
    return library()[0] is not None


def create_handle() -> tuple[LtHandle | None, str]:
    """Return a handle and an empty string, or None and the reason why GEMM cannot go to cuBLASLt."""
    try:
        return LtHandle(), ""
    except LtError as error:
        return None, str(error)


@dataclass(frozen=True)
class MatmulProblem:
    """`D[m, n] = epilogue(alpha * op(A)[m, k] op(B)[k, n] + beta * D)`, column-major, with leading dimensions.

    Attributes
    ----------
    input_type, output_type : int
        ``cudaDataType_t`` of A and B, and of D. Bias and AUX have D's, which is the default: nothing else is taken.
    compute_type, scale_type : int
        What products are computed in; type of alpha and beta.
    epilogue : int
        ``cublasLtEpilogue_t``.
    ld_aux : int
        Leading dimension of AUX in elements, 0 where the epilogue has none.
    alignments : tuple of int
        Bytes that the addresses of A, B and D are multiples of.
    workspace_bytes : int
        The most that an algorithm may ask for.
    batches : tuple of int
        Where there are several products, their number, and elements from one A, B and D to the next.
    """

    m: int
    n: int
    k: int
    trans_a: bool
    trans_b: bool
    lda: int
    ldb: int
    ldd: int
    input_type: int
    output_type: int
    compute_type: int
    scale_type: int
    epilogue: int = EPILOGUE_DEFAULT
    has_bias: bool = False
    ld_aux: int = 0
    alpha: float = 1.0
    beta: float = 0.0
    alignments: tuple[int, int, int] = (FULL_ALIGNMENT,) * 3
    workspace_bytes: int = 0
    batches: tuple[int, ...] = ()

    @property
    def across(self) -> int:
        """How many of A and B do not lie along the sum."""
        return int(not self.trans_a) + int(self.trans_b)


class MatmulPlan:
    """Descriptors, layouts and the algorithm of one product, ready to run.

    The library reads alpha, beta, the algorithm and the two side pointers while a call is being enqueued, so the plan
    owns them all and must outlive the call.

    Raises
    ------
    LtError
        The library refuses the problem, or has no algorithm for it.

    Attributes
    ----------
    offered : list of Algorithm
        What the library offers, in its order; before it what `algorithms.missing` says, where the library would run it.
    default : int
        Number of the one that is taken where no other is asked for.
    choice : HeuristicResult
        What is run.
    """

    def __init__(
        self,
        handle: LtHandle,
        problem: MatmulProblem,
        wanted: tuple[int, ...] = (),
        most: int = 0,
        sm_count: int = 132,
    ) -> None:
        self.handle, self.problem = handle, problem
        lib = handle.lib
        number = ctypes.c_double if problem.scale_type == SCALE_64F else ctypes.c_float
        self.alpha, self.beta = number(problem.alpha), number(problem.beta)
        self.bias, self.aux = _pointer(), _pointer()
        self.matmul, self._set_attribute = lib.cublasLtMatmul, lib.cublasLtMatmulDescSetAttribute
        with ExitStack() as owned:
            self.descriptor = self._describe(owned)
            self.a = self._layout(owned, problem.input_type, problem.m, problem.k, problem.trans_a, problem.lda, 1)
            self.b = self._layout(owned, problem.input_type, problem.k, problem.n, problem.trans_b, problem.ldb, 2)
            self.d = self._layout(owned, problem.output_type, problem.m, problem.n, False, problem.ldd, 3)
            usable = self._heuristic(most or (MOST_CANDIDATES if wanted else CANDIDATES))
            self.offered = [self._configuration(found) for found in usable]
            # What is known of the library's list is known of one product.
            alone = not problem.batches
            lacking = missing(self.offered, problem.m, problem.n, problem.across, sm_count) if alone else None
            built = None if lacking is None else self._build(lacking)
            if built is not None:
                usable, self.offered = [built, *usable], [self._configuration(built), *self.offered]
            self.default = first_choice(self.offered, problem.m * problem.n, problem.across) if alone else 0
            self.choice = usable[self.offered.index(wanted) if wanted in self.offered else self.default]
            self._owned = owned.pop_all()

    def close(self) -> None:
        """Destroy the library's objects."""
        self._owned.close()

    def __del__(self) -> None:
        if hasattr(self, "_owned"):
            self._owned.close()

    def set_bias(self, address: int) -> None:
        """Tell the library where the bias is; it keeps the address until told another."""
        self.bias.value = address
        self._set("BIAS_POINTER", DESC_BIAS_POINTER, self.bias)

    def set_aux(self, address: int) -> None:
        """Tell the library where AUX goes; it keeps the address until told another."""
        self.aux.value = address
        self._set("AUX_POINTER", DESC_AUX_POINTER, self.aux)

    def _set(self, name: str, attribute: int, value: Any) -> None:
        status = self._set_attribute(self.descriptor, attribute, ctypes.addressof(value), ctypes.sizeof(value))
        if status:
            raise LtError(f"cublasLtMatmulDescSetAttribute({name})", status)

    def _create(self, owned: ExitStack, kind: str, *arguments: int) -> int:
        lib, cell = self.handle.lib, _pointer()
        check(f"{kind}Create", getattr(lib, f"{kind}Create")(ctypes.byref(cell), *arguments))
        owned.callback(getattr(lib, f"{kind}Destroy"), cell.value)
        return cell.value or 0

    def _describe(self, owned: ExitStack) -> int:
        p = self.problem
        self.descriptor = self._create(owned, "cublasLtMatmulDesc", p.compute_type, p.scale_type)
        self._set("TRANSA", DESC_TRANSA, _int(p.trans_a))
        self._set("TRANSB", DESC_TRANSB, _int(p.trans_b))
        self._set("EPILOGUE", DESC_EPILOGUE, ctypes.c_uint32(p.epilogue))
        if p.ld_aux:
            self._set("AUX_LD", DESC_AUX_LD, ctypes.c_int64(p.ld_aux))
        return self.descriptor

    def _layout(self, owned: ExitStack, kind: int, rows: int, columns: int, transposed: bool, ld: int, at: int) -> int:
        stored = (columns, rows) if transposed else (rows, columns)
        made = self._create(owned, "cublasLtMatrixLayout", kind, *stored, ld)
        if self.problem.batches:
            self._repeat(made, LAYOUT_BATCH_COUNT, ctypes.c_int32(self.problem.batches[0]))
            self._repeat(made, LAYOUT_BATCH_STEP, ctypes.c_int64(self.problem.batches[at]))
        return made

    def _repeat(self, layout: int, attribute: int, value: Any) -> None:
        set_attribute = self.handle.lib.cublasLtMatrixLayoutSetAttribute
        status = set_attribute(layout, attribute, ctypes.addressof(value), ctypes.sizeof(value))
        check("cublasLtMatrixLayoutSetAttribute", status)

    def _configuration(self, found: HeuristicResult) -> Algorithm:
        values = []
        for attribute, size in CONFIGURATION:
            value, written = ctypes.c_int64(0), _size()
            status = self.handle.lib.cublasLtMatmulAlgoConfigGetAttribute(
                ctypes.addressof(found.algorithm), attribute, ctypes.addressof(value), size, ctypes.addressof(written)
            )
            values.append(-1 if status else value.value)
        return Algorithm(*values)

    def _build(self, wanted: Algorithm) -> HeuristicResult | None:
        """An algorithm made of its attributes, or None where the library would not run it."""
        lib, p, made = self.handle.lib, self.problem, HeuristicResult()
        algorithm, kinds = ctypes.addressof(made.algorithm), (p.input_type,) * 2 + (p.output_type,) * 2
        if lib.cublasLtMatmulAlgoInit(self.handle.value, p.compute_type, p.scale_type, *kinds, wanted.id, algorithm):
            return None
        for (attribute, size), value in zip(CONFIGURATION[1:3], wanted[1:3], strict=True):
            number = ctypes.c_uint32(value)
            if lib.cublasLtMatmulAlgoConfigSetAttribute(algorithm, attribute, ctypes.addressof(number), size):
                return None
        layouts, checked = (self.a, self.b, self.d, self.d), HeuristicResult()
        arguments = (self.handle.value, self.descriptor, *layouts, algorithm, ctypes.addressof(checked))
        if lib.cublasLtMatmulAlgoCheck(*arguments) or checked.workspace_bytes > p.workspace_bytes:
            return None
        made.workspace_bytes = checked.workspace_bytes
        return made

    def _heuristic(self, most: int) -> list[HeuristicResult]:
        lib, function = self.handle.lib, "cublasLtMatmulAlgoGetHeuristic"
        found, count = (HeuristicResult * most)(), _int()
        with ExitStack() as owned:
            preference = self._preference(owned)
            layouts = (self.a, self.b, self.d, self.d)
            status = getattr(lib, function)(
                self.handle.value, self.descriptor, *layouts, preference, most, found, ctypes.byref(count)
            )
        check(function, status)
        usable = [found[i] for i in range(count.value) if found[i].state == 0]
        if not usable:
            raise LtError(function, 0, "no algorithm for this problem")
        return usable

    def _preference(self, owned: ExitStack) -> int:
        preference = self._create(owned, "cublasLtMatmulPreference")
        a, b, d = self.problem.alignments
        wanted: list[tuple[int, Any]] = [
            (PREF_WORKSPACE_BYTES, ctypes.c_uint64(self.problem.workspace_bytes)),
            (PREF_REDUCTION_SCHEMES, ctypes.c_uint32(REDUCTION_COMPUTE_TYPE)),
        ]
        for attribute, alignment in zip(PREF_ALIGNMENTS, (a, b, d, d), strict=True):
            if alignment < FULL_ALIGNMENT:
                wanted.append((attribute, ctypes.c_uint32(alignment)))
        for attribute, value in wanted:
            status = self.handle.lib.cublasLtMatmulPreferenceSetAttribute(
                preference, attribute, ctypes.addressof(value), ctypes.sizeof(value)
            )
            check(f"cublasLtMatmulPreferenceSetAttribute({attribute})", status)
        return preference
