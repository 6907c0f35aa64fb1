"""What a case is run on: this library on one of its backends, or any other implementation of the primitives.

Another implementation is a module, or any object, with functions of the names and signatures of the primitives:

*   ``softmax_forward(handle, x, *, axis=-1, ...)``. ``handle`` is what the module's ``create_handle()`` returns, None
    where it has none.
*   Arrays come as the module's ``asarray(a)`` makes them of NumPy arrays (`ml_dtypes.bfloat16` among them) and go
    through its ``to_numpy(a)`` to be judged; without these they are NumPy arrays. ``synchronize()``, where there is
    one, is called before results are read.
*   What a function returns is judged. It may write into ``out`` or leave it alone; an operand that the primitive
    updates in place (weights of an optimizer) must be changed.
*   A function that is not there is *not offered*, and one that raises `NotImplementedError` *declines* the case: both
    are counted and are no failures. Whatever else it raises is one.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import dnnprims


class Declined(Exception):
    """The implementation under test does not take a case; the text says why."""


#: Why a case is declined whose function is not there.
NOT_OFFERED = "not offered"


class Subject(Protocol):
    """What cases are run on."""

    name: str

    def asarray(self, a: Any) -> Any: ...
    def to_numpy(self, a: Any) -> Any: ...
    def synchronize(self) -> None: ...
    def call(self, op: str, arguments: Mapping[str, Any]) -> Any: ...


class Library:
    """This library on a handle."""

    def __init__(self, handle: dnnprims.Handle) -> None:
        self._handle, self.name = handle, handle.backend
        self.asarray, self.to_numpy, self.synchronize = handle.asarray, handle.to_numpy, handle.synchronize

    def call(self, op: str, arguments: Mapping[str, Any]) -> Any:
        """The primitive of that name."""
        return getattr(dnnprims, op)(self._handle, **arguments)


class Other:
    """Another implementation.

    Parameters
    ----------
    implementation : module or object
        With functions as the module docstring says.
    name : str
        How it is called in reports.
    """

    def __init__(self, implementation: Any, name: str) -> None:
        self._implementation, self.name = implementation, name
        create = getattr(implementation, "create_handle", None)
        self._handle = create() if create else None
        self.asarray = getattr(implementation, "asarray", np.array)
        self.to_numpy = getattr(implementation, "to_numpy", np.asarray)
        self.synchronize = getattr(implementation, "synchronize", lambda: None)

    def call(self, op: str, arguments: Mapping[str, Any]) -> Any:
        """Its function of that name."""
        function = getattr(self._implementation, op, None)
        if function is None:
            raise Declined(NOT_OFFERED)
        try:
            return function(self._handle, **arguments)
        except NotImplementedError as error:
            raise Declined(str(error) or "declined") from None


def load(text: str) -> Other:
    """The implementation that ``package.module``, ``path/to/file.py`` or either with ``:attribute`` behind it names.

    Raises
    ------
    BadParamError
        It cannot be imported, or has no function of a primitive's name.
    """
    path, _, attribute = text.partition(":")
    try:
        found: Any = _from_file(Path(path)) if path.endswith(".py") else importlib.import_module(path)
        for part in filter(None, attribute.split(".")):
            found = getattr(found, part)
    except Exception as error:
        problem = f"cannot be imported ({type(error).__name__}: {error})"
        rule = "package.module, file.py, or one of these with :attribute"
        raise dnnprims.BadParamError("verify", problem, param="--against", got=text, expected=rule) from error
    if not any(hasattr(found, op.__name__) for op in dnnprims.PRIMITIVES):
        rule = "functions of the primitives' names, such as softmax_forward"
        raise dnnprims.BadParamError("verify", "has no primitive", param="--against", got=text, expected=rule)
    return Other(found, attribute or Path(path).stem)


def _from_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
