"""Who may import whom, and what importing the package costs and touches."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "dnnprims"
MODULES = sorted(PACKAGE.rglob("*.py"))

#: What a part of the package may import of the package; a name stands for itself and what is below it.
ALLOWED = {
    "reference": {"reference"},
    "runtime": {"runtime", "dtypes", "errors", "descriptors"},
    "descriptors": {"descriptors", "dtypes", "errors"},
    "checks": {"checks", "dtypes", "errors", "descriptors"},
    "context": {"checks", "errors", "finding", "runtime", "tuner"},
    "problem": {"problem", "descriptors", "dtypes", "errors"},
    "handle": {"checks", "context", "descriptors", "errors", "operands", "runtime", "watching"},
    "ops": {"checks", "descriptors", "dtypes", "errors", "handle", "runtime", "reference"},
    "conformance": {"conformance", "problem", "reference", "dtypes", "errors", "descriptors", ""},
    "demo": {"", "demo_convolution", "demo_network"},
    "demo_convolution": {"", "demo_network"},
    "demo_network": {""},
}

#: What a part may import from outside the package besides the standard library.
OUTSIDE = {"reference": {"numpy", "ml_dtypes"}, "checks": {"numpy"}, "ops": {"numpy", "ml_dtypes"}}


def imports(path: Path) -> list[tuple[str, bool]]:
    """Modules that a file imports: (dotted name, own or not), type-only ones left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    package = list(path.relative_to(PACKAGE.parent).with_suffix("").parts[:-1])
    found = []
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, alias.name.split(".")[0] == "dnnprims") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((node.module or "", (node.module or "").split(".")[0] == "dnnprims"))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            whole = ".".join([*base, *([node.module] if node.module else [])])
            found += [(f"{whole}.{a.name}" if not node.module else whole, True) for a in node.names]
    return found


def part_of(path: Path) -> str:
    """Folder, or top-level module, of the package that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    """The arrows of the design: ops to runtime and reference, reference to NumPy alone, nothing to plug-ins."""
    part = part_of(path)
    folder = ".".join(path.relative_to(PACKAGE.parent).parent.parts)
    for name, own in imports(path):
        if folder.startswith("dnnprims.ops.") and name.startswith(folder):
            continue  # a family that has outgrown a file
        target = name.removeprefix("dnnprims").lstrip(".").split(".")[0] if own else name.split(".")[0]
        stem = path.relative_to(PACKAGE).with_suffix("").parts[:2]
        if own and part == "ops" and target == "ops":
            # The list of families may, and a family that is a folder within itself.
            assert stem == ("ops", "__init__") or name.split(".")[1:3] == list(stem), f"an op imports an op: {name}"
        elif own and part in ALLOWED:
            assert target in ALLOWED[part], f"{path.name} imports {name}"
        if own:
            assert target not in {"plugins", "tests", "tools"} or part in {"plugins"}, f"{path.name} imports {name}"
        elif part in OUTSIDE and target not in sys.stdlib_module_names:
            assert target in OUTSIDE[part], f"{path.name} imports {name}"


def test_kernels_include_only_own_headers() -> None:
    """The CUDA text needs no header of the toolkit."""
    for path in sorted((PACKAGE / "kernels").glob("*.cu*")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip().startswith("#include"):
                header = line.split(None, 1)[1].strip()
                assert header.startswith('"'), f"{path.name}: {line}"
                assert (PACKAGE / "kernels" / header.strip('"')).is_file(), f"{path.name}: {line}"
                assert header.endswith('.cuh"'), f"{path.name}: {line}"


def run_python(code: str, *, block: tuple[str, ...] = (), bytecode: Path | None = None) -> str:
    """Run code in a fresh interpreter in which some modules cannot be imported, with its bytecode kept where asked."""
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in block)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{blocked}{code}"],
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
        env=_keeping(bytecode) if bytecode else None,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _keeping(bytecode: Path) -> dict[str, str]:
    """An environment in which modules are compiled once, as those of an installed package are."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(bytecode)}


def test_import_needs_numpy_alone() -> None:
    """The package imports and computes without CuPy, and loads no framework."""
    out = run_python(
        "import dnnprims as dp\n"
        "h = dp.create_handle()\n"
        "print(h.backend)\n"
        "print([m for m in ('cupy', 'torch', 'jax', 'sklearn', 'matplotlib', 'rich') if sys.modules.get(m)])",
        block=("cupy", "cupy_backends"),
    )
    assert out.split() == ["numpy", "[]"]


def test_import_touches_no_gpu() -> None:
    """Importing does not even import CuPy."""
    out = run_python("import dnnprims\nprint('cupy' in sys.modules)")
    assert out.strip() == "False"


def test_import_is_quick(tmp_path: Path) -> None:
    """At most 0.15 s of processor time beyond NumPy's own import, best of ten fresh interpreters."""
    code = "import numpy, ml_dtypes, time\nt = time.process_time()\nimport dnnprims\nprint(time.process_time() - t)"
    assert min(float(run_python(code, bytecode=tmp_path)) for _ in range(10)) <= 0.15


def test_no_code_from_data() -> None:
    """Nothing evaluates text as code or unpickles."""
    banned = {"eval", "exec", "compile"}
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in banned, f"{path.name}: {node.func.id}"
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert ast.unparse(node.value) == "False", path.name
        for name, _ in imports(path):
            assert name.split(".")[0] not in {"pickle", "marshal", "shelve"}, path.name
