"""The instrument that plants mistakes: what it plants, where it must not, and that what it plants is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import mutate
import pytest

from dnnprims.ops import FAMILIES
from mutation import catalogue, cuda_text, python_text, records, suite
from mutation.campaign import judge
from mutation.overlay import Overlay

pytest.importorskip("resource", reason="processes are limited by POSIX means")

ROOT = Path(__file__).resolve().parent.parent


def changes(find: object, text: str) -> set[tuple[str, str]]:
    """(kind of mistake, the whole text with it) for a text."""
    return {(mutant.operator, mutant.apply(text)) for mutant in find("f", text)}  # type: ignore[operator]


# -- mistakes in CUDA text -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "operator", "mistaken"),
    [
        ("if (a < b) f();", "bound", "if (a <= b) f();"),
        ("x = a >= b;", "bound", "x = a > b;"),
        ("x = a == b;", "equality", "x = a != b;"),
        ("x = a && b;", "logic", "x = a || b;"),
        ("x = a + b;", "sign", "x = a - b;"),
        ("x = a * b;", "factor", "x = a + b;"),
        ("x += a;", "update", "x = a;"),
        ("x = -a;", "negation", "x = a;"),
        ("x = a / (b + p.epsilon);", "epsilon", "x = a / (b );"),
        ("x = p[3];", "number", "x = p[4];"),
        ("x = p[3];", "number", "x = p[2];"),
        ("x = A(0);", "identity", "x = A(1);"),
        ("f(); __syncthreads(); g();", "barrier", "f(); ; g();"),
        ("if (i > n) return;", "condition", "if (false) return;"),
        ("for (i = 0; i < n; i++) f(i);", "loop", "for (i = 0; false; i++) f(i);"),
        ("y = p.alpha * x + p.beta;", "name", "y = p.beta * x + p.beta;"),
        ("v = op(v, __shfl_xor_sync(m, v, offset));", "shuffle", "v = op(v, __shfl_xor_sync(m, v, 1));"),
        ("v = reduce(v, Max());", "extreme", "v = reduce(v, Min());"),
        ("double sum = 0.0;", "accumulator", "float sum = 0.0;"),
        ("i = blockIdx.x;", "axis", "i = blockIdx.y;"),
    ],
)
def test_cuda_mistakes(text: str, operator: str, mistaken: str) -> None:
    """Each kind stands for a mistake that people make."""
    assert (operator, mistaken) in changes(cuda_text.mutants, text)


@pytest.mark.parametrize(
    "text",
    [
        "// a < b && c + 1",
        "/* a < b\n && c + 1 */",
        '#if A < 3 && B == 1\n#pragma unroll 4\n#include "a+b"\n#define M(x) \\\n  x + 1\n',
        'say("a < b + 1");',
        "template <int N, class T> struct pack;",
        "pack<T, 4> v;",
        'static_assert(sizeof(A) == 8 && B < 3, "a + b");',
        "__global__ void __launch_bounds__(256, 2) k();",
        '#if defined(DNNPRIMS_EMULATOR)\nf(a + 1);\n#else\nasm("a + 1" : "=f"(r) : "f"(v + 1));\n#endif\n',
        "x = 1.5f;",
        "x = 0xffu;",
    ],
)
def test_cuda_text_that_is_left_alone(text: str) -> None:
    """Comments, strings, the preprocessor, templates, assertions, the emulator's twins, all numbers but plain ones."""
    assert changes(cuda_text.mutants, text) == set()


def test_steps_of_loops_are_kept() -> None:
    """A loop without its step hangs, which tells nothing of the tests."""
    found = changes(cuda_text.mutants, "for (i = 0; i < n; i += 4) s += i;")
    assert {text for operator, text in found if operator == "update"} == {"for (i = 0; i < n; i += 4) s = i;"}


# -- mistakes in Python ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "operator", "mistaken"),
    [
        ("x = a < b", "bound", "x = a <= b"),
        ("x = a is None", "bound", "x = a is not None"),
        ("x = a in b", "bound", "x = a not in b"),
        ("x = a and b", "logic", "x = a or b"),
        ("x = a + b", "arithmetic", "x = a - b"),
        ("x = (a) // (b)", "arithmetic", "x = (a) * (b)"),
        ("x = not a", "negation", "x = a"),
        ("x = y[a : b + 1]", "number", "x = y[a : b + 2]"),
        ("x = f(y, keep=True)", "constant", "x = f(y, keep=False)"),
        ("if a:\n    f()\n", "condition", "if not (a):\n    f()\n"),
        ("x = a if b else c", "condition", "x = a if not (b) else c"),
        ("x = [a for a in b if a]", "filter", "x = [a for a in b if True]"),
        ("checks.require_shape(op, x)", "call", "pass"),
        ("x = min(a, 1)", "extreme", "x = max(a, 1)"),
        ("x = f(a, b)", "order", "x = f(b, a)"),
        ("x = (a, b)", "order", "x = (b, a)"),
        ("x = alpha * y", "name", "x = beta * y"),
    ],
)
def test_python_mistakes(text: str, operator: str, mistaken: str) -> None:
    """Each kind stands for a mistake that people make."""
    assert (operator, mistaken) in changes(python_text.mutants, text)


@pytest.mark.parametrize(
    "text",
    [
        '"""a < b and c + 1"""',
        "# a < b and c + 1",
        'raise Error(f"{a + 1}")',
        'x = f"{a + 1}"',
        "x: dict[1, 2]",
        "def f(x: int | None) -> tuple[1, 2]: ...",
        "if TYPE_CHECKING:\n    from a import b\n",
        "from a import b",
        "warnings.warn('x', stacklevel=2)",
    ],
)
def test_python_text_that_is_left_alone(text: str) -> None:
    """Words, annotations and imports."""
    assert changes(python_text.mutants, text) == set()


def test_places_behind_wide_characters() -> None:
    """The tree counts bytes, the text has characters."""
    assert ("bound", 'x = ("éé", a <= b)') in changes(python_text.mutants, 'x = ("éé", a < b)')


# -- the choice ------------------------------------------------------------------------------------------------------


def test_choice_is_spread_and_repeats() -> None:
    """The same seed gives the same mutants, in every family's kernels and front ends, of many kinds, none twice."""
    chosen = catalogue.choose(ROOT, 300, seed=3)
    assert chosen == catalogue.choose(ROOT, 300, seed=3) != catalogue.choose(ROOT, 300, seed=4)
    assert len(set(chosen)) == 300
    paths, kinds = {mutant.path for mutant in chosen}, {mutant.operator for mutant in chosen}
    # pooling.cu only collects its headers
    assert {f"dnnprims/kernels/{name}.cu" for name in FAMILIES if name != "pooling"} <= paths
    assert "dnnprims/kernels/pooling_plain.cuh" in paths
    assert {"dnnprims/runtime/plan.py", "dnnprims/handle.py", "dnnprims/ops/prelu.py"} <= paths
    assert len(kinds) >= 20


def test_exclusions_match_something() -> None:
    """A rule that nothing needs any more is noticed here; each has its reason."""
    for rule in catalogue.EXCLUSIONS:
        assert rule.reason
        found = [p for p in catalogue.files(ROOT) if catalogue.fnmatch(p, rule.files)]
        texts = "\n".join((ROOT / path).read_text(encoding="utf-8") for path in found)
        assert catalogue.re.search(rule.line, texts), rule


def test_files_are_shown_to_the_families_that_they_serve() -> None:
    """A header to all that include it, a front end to its own, the rest to all."""
    assert suite.families_of(ROOT, "dnnprims/kernels/prelu.cu") == ("prelu",)
    assert suite.families_of(ROOT, "dnnprims/kernels/gemm.cu") == ("fc",)
    assert set(suite.families_of(ROOT, "dnnprims/kernels/tensor_lists.cuh")) == {"adam", "gradient", "sgd"}
    assert suite.families_of(ROOT, "dnnprims/ops/fc/kernels.py") == ("fc",)
    assert suite.families_of(ROOT, "dnnprims/runtime/plan.py") == suite.case_families()


def test_equivalent_mutants_are_still_planted() -> None:
    """What is argued about stands in the text; each has its reason."""
    rows = json.loads(records.EQUIVALENT.read_text(encoding="utf-8"))
    found: dict[str, set[tuple[str, str]]] = {}
    for row in rows:
        path, source = row["file"], (ROOT / row["file"]).read_text(encoding="utf-8")
        if path not in found:
            found[path] = {(m.before(source), m.after(source)) for m in catalogue.candidates(ROOT, path)}
        assert (row["before"], row["after"]) in found[path], row
        assert len(row["reason"]) > 20


# -- what is planted is noticed --------------------------------------------------------------------------------------

NOTICED = [
    ("dnnprims/kernels/prelu.cu", "for (i64 e = first; e < p.size; e++) {", "for (i64 e = first; false; e++) {"),
    ("dnnprims/kernels/prelu.cu", "sum[k] += prelu_slope_term(g, v);", "sum[k] = prelu_slope_term(g, v);"),
    ("dnnprims/kernels/prelu.cu", "__syncthreads();", ";"),
    (
        "dnnprims/ops/prelu.py",
        "return prod(x.shape[:at]), x.shape[at], prod(x.shape[at + 1 :])",
        "return prod(x.shape[:at]), x.shape[at], prod(x.shape[at + 2 :])",
    ),
    (
        "dnnprims/ops/prelu.py",
        "scalars = (float(alpha), float(beta), x.size, *layout[1:])",
        "scalars = (float(beta), float(beta), x.size, *layout[1:])",
    ),
]


@pytest.mark.skipif(mutate.shutil.which("g++") is None, reason="the emulator needs g++")
@pytest.mark.parametrize(("path", "before", "after"), NOTICED, ids=["tail", "sum", "barrier", "axis", "alpha"])
def test_planted_mistakes_are_noticed(tmp_path: Path, path: str, before: str, after: str) -> None:
    """By the conformance cases of the family alone."""
    source = (ROOT / path).read_text(encoding="utf-8")
    wanted = before, after
    (mutant, *_) = [m for m in catalogue.candidates(ROOT, path) if (m.before(source), m.after(source)) == wanted]
    overlay = Overlay(ROOT, tmp_path, mutant)
    try:
        part = suite.cases(("prelu",), ("float32",))
        assert judge(part, overlay.run(part, 120.0))[0] == "killed"
    finally:
        overlay.remove()
