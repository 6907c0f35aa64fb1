"""Making a handle: the options checked, the backend chosen, its executor started."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import checks
from .errors import BadParamError
from .handle import Handle
from .runtime.launch import Profile
from .runtime.plan import Executor
from .runtime.tuning import Tuning

BACKENDS = ("auto", "cuda", "emulator", "numpy")


def create_handle(
    backend: str = "auto",
    *,
    device: int | None = None,
    stream: Any = None,
    math: str = "ieee",
    deterministic: bool = True,
    workspace_limit: int | None = None,
    tuning: Tuning | str | Path | None = None,
) -> Handle:
    """Create a handle, the first argument of every primitive.

    Parameters
    ----------
    backend : {"auto", "cuda", "emulator", "numpy"}
        ``auto`` is CUDA where CuPy finds a GPU, else NumPy; ``DNNPRIMS_BACKEND`` overrides it. ``emulator`` runs the
        CUDA sources on the CPU through g++, for tests.
    device : int, optional
        Number of the GPU; CuPy's current one where left out.
    stream : cupy.cuda.Stream, int or None
        Where work is enqueued: a stream, its address, or None for CuPy's current stream at each call.
    math : {"ieee", "tf32"}
        What products of float32 are computed in. Never TF32 unless asked for.
    deterministic : bool
        Refuse variants whose bits may differ between runs.
    workspace_limit : int, optional
        Most bytes of workspace that a plan may use; 0 is allowed.
    tuning : Tuning, str or Path, optional
        What was found faster by timing, or the file of it (`Tuning.save`, ``python -m dnnprims tune``);
        ``DNNPRIMS_TUNING`` names one where left out. Entries for other devices and versions are passed over.

    Returns
    -------
    Handle

    Raises
    ------
    BadParamError
        An argument is not one of the above.
    ExecutionError
        The backend asked for does not work here; the message names the layer and the remedy.

    Notes
    -----
    A handle belongs to one thread at a time; two threads inside one handle are detected and refused.

    Examples
    --------
    >>> handle = create_handle("numpy")
    >>> handle.backend
    'numpy'
    """
    op = "create_handle"
    checks.require_choice(op, "backend", backend, BACKENDS)
    checks.require_choice(op, "math", math, ("ieee", "tf32"))
    checks.require_switch(op, "deterministic", deterministic)
    if workspace_limit is not None:
        checks.require_integer(op, "workspace_limit", workspace_limit, 0)
    if device is not None:
        checks.require_integer(op, "device", device, 0)
    executor = _make_executor(_resolve(backend), device)
    limits = executor.profile if executor is not None else Profile("numpy")
    limit = -1 if workspace_limit is None else workspace_limit
    profile = replace(limits, math=math, deterministic=bool(deterministic), workspace_limit=limit)
    known = _load_tuning(tuning)
    handle = Handle(executor, profile, device or 0, stream)
    if known is not None:
        handle.use_tuning(known)
    return handle


def _load_tuning(given: Any) -> Tuning | None:
    """The choices to use, read before anything is made."""
    if isinstance(given, Tuning):
        return given
    if given is not None:
        return Tuning.load(given, "create_handle", "tuning")
    path = os.environ.get("DNNPRIMS_TUNING", "")
    return Tuning.load(path, "create_handle", "DNNPRIMS_TUNING") if path else None


def _resolve(backend: str) -> str:
    if backend == "auto":
        backend = os.environ.get("DNNPRIMS_BACKEND", "auto")
        checks.require_choice("create_handle", "DNNPRIMS_BACKEND", backend, BACKENDS)
    if backend != "auto":
        return backend
    from .runtime.cuda import gpu_works

    return "cuda" if gpu_works() else "numpy"


def _make_executor(backend: str, device: int | None) -> Executor | None:
    if backend == "numpy":
        return None
    from .ops import FAMILIES

    if backend == "emulator":
        from .runtime.emulator import EmulatorExecutor

        emulator: Executor = EmulatorExecutor(FAMILIES)
        return emulator
    from .runtime.cuda import CudaExecutor, load_cupy

    runtime = load_cupy().cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError:
        count = 0
    number = device if device is not None else (runtime.getDevice() if count else 0)
    if number >= count:
        raise BadParamError(
            "create_handle",
            "names no GPU" if count else "cannot be used, as no GPU was found",
            param="device" if count else "backend",
            got=number if count else backend,
            expected=f"in [0, {count})" if count else "a machine with a working NVIDIA driver",
            hint="run python -m dnnprims doctor, or use the numpy backend",
        )
    return CudaExecutor(number, FAMILIES)
