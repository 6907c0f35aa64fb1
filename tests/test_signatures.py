"""Ops and references say the same: names, parameters, defaults; every public function is documented."""

from __future__ import annotations

import inspect
from types import FunctionType

import pytest

import dnnprims
from dnnprims import reference

PRIMITIVES = dnnprims.PRIMITIVES


@pytest.mark.parametrize("op", PRIMITIVES, ids=lambda op: op.__name__)
def test_reference_has_the_same_signature(op: FunctionType) -> None:
    """The reference of the same stem takes the same parameters with the same defaults, the handle left out."""
    stem = op.__module__.split(".")[2]  # of the file, or of the folder that a family has outgrown it to
    twin = getattr(getattr(reference, stem), op.__name__)
    first, *mine = inspect.signature(op).parameters.values()
    theirs = list(inspect.signature(twin).parameters.values())
    assert first.name == "handle"
    assert [(p.name, p.kind, p.default) for p in mine] == [(p.name, p.kind, p.default) for p in theirs]


@pytest.mark.parametrize("op", PRIMITIVES, ids=lambda op: op.__name__)
def test_docstring_is_complete(op: FunctionType) -> None:
    """A public docstring names every parameter and has the sections that a reader relies on."""
    text = inspect.getdoc(op) or ""
    for section in ("Parameters\n----------", "Returns\n-------", "Raises\n------", "Notes\n-----"):
        assert section in text, f"{op.__name__} lacks {section.split()[0]}"
    for name in inspect.signature(op).parameters:
        if name != "handle":
            assert f"{name}" in text, f"{op.__name__} does not document {name}"


@pytest.mark.parametrize("op", PRIMITIVES, ids=lambda op: op.__name__)
def test_plan_names_its_operands_as_the_function_does(op: FunctionType) -> None:
    """Error messages and prepared plans name operands by the plan function's parameters."""
    module = inspect.getmodule(op)
    build = getattr(module, f"plan_{op.__name__}")
    public = set(inspect.signature(op).parameters)
    assert next(iter(inspect.signature(build).parameters)) == "profile"
    unknown = set(inspect.signature(build).parameters) - public - {"profile"}
    assert not unknown, f"plan_{op.__name__} has parameters that {op.__name__} has not: {unknown}"


def test_public_names_exist() -> None:
    """Everything in __all__ is there, and every primitive is in __all__."""
    for name in dnnprims.__all__:
        assert hasattr(dnnprims, name), name
    assert {op.__name__ for op in PRIMITIVES} <= set(dnnprims.__all__)
