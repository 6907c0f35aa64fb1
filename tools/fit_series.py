"""Write ``dnnprims/kernels/series.cuh``: the polynomials and constants behind the elementary functions.

Each polynomial interpolates its function at Chebyshev nodes in 50-digit arithmetic; its degree is the least
whose relative error over the interval is below the target. Some of those for 16-bit storage have a given degree and the
least error there is, weighted with what they are multiplied by. Needs mpmath. Usage: ``python tools/fit_series.py``.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import mpmath as mp
import numpy as np

mp.mp.dps = 50
TARGET = pathlib.Path(__file__).parents[1] / "dnnprims" / "kernels" / "series.cuh"

HEAD = """\
// Polynomials and constants of the elementary functions, for float and double. Written by tools/fit_series.py:
// each polynomial interpolates its function at Chebyshev nodes, or, for 16 bits, has the least weighted error there is;
// its comment gives interval and error.
#pragma once
#include "dtypes.cuh"

// fma for either accumulator; the build never contracts by itself, so what is fused is what says so.
DEVICE float fma_(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE double fma_(double a, double b, double c) { return fma(a, b, c); }

// c0 + x * (c1 + x * (...)), by Horner.
template <class A> DEVICE A polynomial(A, A c) { return c; }
template <class A, class... C> DEVICE A polynomial(A x, A c, A next, C... rest) {
  return fma_(x, polynomial(x, next, rest...), c);
}

// For storage of 16 bits there is a shorter set, under the tag Sixteen.
struct Sixteen;
template <class A> struct series;
"""


@dataclass(frozen=True)
class Series:
    """A function to fit on [low, high]."""

    name: str
    comment: str
    value: Callable[[mp.mpf], mp.mpf]
    low: mp.mpf
    high: mp.mpf
    slack: int = 0  # bits that the rest of the algorithm does not need


@dataclass(frozen=True)
class Minimax:
    """A function to fit on [low, high] with a polynomial of a degree, so that error times weight is least."""

    name: str
    comment: str
    value: Callable[[mp.mpf], mp.mpf]
    weight: Callable[[mp.mpf], mp.mpf]
    low: mp.mpf
    high: mp.mpf
    degree: int


def chebyshev(f: Callable[[mp.mpf], mp.mpf], low: mp.mpf, high: mp.mpf, degree: int) -> list[mp.mpf]:
    """Monomial coefficients of the interpolant at the Chebyshev nodes of [low, high]."""
    n = degree + 1
    angles = [mp.pi * (2 * k + 1) / (2 * n) for k in range(n)]
    values = [f((low + high) / 2 + (high - low) / 2 * mp.cos(t)) for t in angles]
    weights = [2 * mp.fsum(v * mp.cos(j * t) for v, t in zip(values, angles, strict=True)) / n for j in range(n)]
    weights[0] /= 2
    scale, shift = 2 / (high - low), -(low + high) / (high - low)
    previous, current = [mp.mpf(1)] + [mp.mpf(0)] * degree, [shift, scale] + [mp.mpf(0)] * degree
    total = [weights[0] * p for p in previous]
    for j in range(1, n):
        total = [t + weights[j] * c for t, c in zip(total, current, strict=False)]
        shifted = [mp.mpf(0), *current[:-1]]
        following = [2 * (shift * c + scale * s) for c, s in zip(current, shifted, strict=True)]
        previous, current = current[:n], [x - p for x, p in zip(following, previous, strict=False)]
    return total


def minimax(curve: Minimax) -> tuple[list[mp.mpf], float]:
    """Coefficients whose largest weighted error is least, by Remez' exchange, and its binary logarithm."""
    n, low, high = curve.degree + 2, curve.low, curve.high
    grid = [low + (high - low) * (1 - mp.cos(mp.pi * (i + mp.mpf("0.5")) / 400)) / 2 for i in range(400)]
    values, weights = [curve.value(x) for x in grid], [curve.weight(x) for x in grid]
    chosen = [399 * i // (n - 1) for i in range(n)]
    for _ in range(12):
        rows = [[*(grid[k] ** j for j in range(n - 1)), (-1) ** i / weights[k]] for i, k in enumerate(chosen)]
        solved = mp.lu_solve(mp.matrix(rows), mp.matrix([values[k] for k in chosen]))
        coefficients = [solved[j] for j in range(n - 1)]
        errors = [(mp.polyval(coefficients[::-1], x) - v) * w for x, v, w in zip(grid, values, weights, strict=True)]
        chosen = alternating(errors, n)
    return coefficients, float(mp.log(max(map(abs, errors)), 2))


def alternating(errors: list[mp.mpf], count: int) -> list[int]:
    """Where the errors are extreme, one place for each run of a sign, the largest `count` in a row."""
    runs: list[list[int]] = [[0]]
    for i in range(1, len(errors)):
        if (errors[i] > 0) == (errors[runs[-1][-1]] > 0):
            runs[-1].append(i)
        else:
            runs.append([i])
    peaks = [max(run, key=lambda i: abs(errors[i])) for run in runs]
    while len(peaks) > count:
        peaks = peaks[1:] if abs(errors[peaks[0]]) < abs(errors[peaks[-1]]) else peaks[:-1]
    return peaks


def error_bits(series: Series, coefficients: list[mp.mpf]) -> float:
    """Binary logarithm of the largest relative error, over 200 points off the nodes."""
    worst = mp.mpf(0)
    for i in range(201):
        angle = mp.pi * (i + mp.mpf("0.013")) / mp.mpf("200.02")
        x = series.low + (series.high - series.low) * (1 - mp.cos(angle)) / 2
        worst = max(worst, abs(mp.polyval(coefficients[::-1], x) / series.value(x) - 1))
    return float(mp.log(worst, 2))


def fit(series: Series, bits: int) -> tuple[list[mp.mpf], float]:
    """The shortest polynomial whose relative error is below 2^-bits."""
    for degree in range(2, 32):
        coefficients = chebyshev(series.value, series.low, series.high, degree)
        error = error_bits(series, coefficients)
        if error <= -bits:
            return coefficients, error
    raise SystemExit(f"{series.name}: no polynomial up to degree 31 reaches 2^-{bits}")


def erfcx(z: mp.mpf) -> mp.mpf:
    return mp.exp(z * z) * mp.erfc(z)


def sigmoid(x: mp.mpf) -> mp.mpf:
    return 1 / (1 + mp.exp(-x))


def gelu_slope(x: mp.mpf) -> mp.mpf:
    return mp.ncdf(x) + x * mp.npdf(x)


def gelu_tanh_slope(x: mp.mpf) -> mp.mpf:
    k, cubic = mp.sqrt(2 / mp.pi), mp.mpf("0.044715")
    s = sigmoid(2 * k * (x + cubic * x**3))
    return s + x * s * (1 - s) * 2 * k * (1 + 3 * cubic * x * x)


def swish_slope(x: mp.mpf) -> mp.mpf:
    s = sigmoid(x)
    return s * (1 + x * (1 - s))


def mish_slope(x: mp.mpf) -> mp.mpf:
    t = mp.tanh(mp.log1p(mp.exp(x)))
    return t + x * (1 - t * t) * sigmoid(x)


# Klambauer et al., "Self-normalizing neural networks", 2017: the fixed point of mean 0 and variance 1.
SELU_SCALE = mp.mpf("1.0507009873554804934193349852946")
SELU_ALPHA = mp.mpf("1.6732632423543772848170429916717")


def gelu_tail_slope(s: mp.mpf) -> mp.mpf:
    """The derivative of gelu at -a over exp(-a^2 / 2) and over the distance of a from its zero."""
    a = 3 * s / (1 - s)
    return (erfcx(a / mp.sqrt(2)) / 2 - a / mp.sqrt(2 * mp.pi)) / (a + mp.findroot(gelu_slope, -0.75))


SLOPES = {
    "gelu": (gelu_slope, -0.75, -0.65, 0.45),
    "gelu_tanh": (gelu_tanh_slope, -0.75, -0.75, 0.45),
    "swish": (swish_slope, -1.28, -1.0, 0.75),
    "mish": (mish_slope, -1.19, -0.9, 0.7),
}


def common_series() -> list[Series]:
    """What every set has. The intervals are not quite symmetric, which keeps the nodes off the removable 0 / 0."""
    half, one = mp.log(2) / 2 * mp.mpf("1.001"), mp.mpf("1.001")
    third, third_below = mp.mpf("0.3338"), mp.mpf("-0.3336")
    return [
        Series("exp_tail", "(e^r - 1 - r) / r^2", lambda r: (mp.expm1(r) - r) / r**2, -half, half + one / 4096, 1),
        Series("log1p_tail", "(log1p(e) / e - 1) / e of s = e - 1 / 2", log1p_tail, -one / 2, one / 2, 1),
        Series("log_tail", "(log1p(f) - f + f^2 / 2) / f^3", log_tail, third_below, third, 3),
    ]


def log1p_tail(s: mp.mpf) -> mp.mpf:
    return log1p_second(s + mp.mpf("0.5"))


def log1p_second(e: mp.mpf) -> mp.mpf:
    return (mp.log1p(e) / e - 1) / e


def expm1_second(x: mp.mpf) -> mp.mpf:
    return (mp.expm1(x) / x - 1) / x


def tanh_second(w: mp.mpf) -> mp.mpf:
    x = mp.sqrt(w)
    return (mp.tanh(x) / x - 1) / w


def half_erfcx(s: mp.mpf) -> mp.mpf:
    a = 3 * s / (1 - s)
    return (a + 3) * erfcx(a / mp.sqrt(2)) / 2


def log_tail(f: mp.mpf) -> mp.mpf:
    return (mp.log1p(f) - f + f * f / 2) / f**3


def tanhshrink(w: mp.mpf) -> mp.mpf:
    x = mp.sqrt(w)
    return (x - mp.tanh(x)) / x**3


TANHSHRINK = Series("tanhshrink", "((x - tanh x) / x^3 - first) / w of w = x^2", tanhshrink, mp.mpf(0), mp.mpf("1.001"))


class Writer:
    """Text of the specialisation for one accumulator."""

    def __init__(self, tag: str, cuda: str, scalar: type[np.floating], bits: int) -> None:
        self.cuda, self.scalar, self.bits = cuda, scalar, bits
        self.lines = [f"template <> struct series<{tag}> {{"]

    def number(self, value: mp.mpf) -> str:
        if self.scalar is np.float64:
            return repr(float(value))
        plain = 1e-3 < abs(value) < 1e3
        write = np.format_float_positional if plain else np.format_float_scientific
        return write(np.float32(value), unique=True, trim="0") + "f"

    def nearest(self, value: mp.mpf) -> mp.mpf:
        return mp.mpf(float(self.scalar(float(value)))) if self.scalar is np.float32 else mp.mpf(float(value))

    def constant(self, name: str, value: mp.mpf) -> None:
        self.lines.append(f"  static DEVICE {self.cuda} {name}() {{ return {self.number(value)}; }}")

    def split(self, name: str, value: mp.mpf) -> None:
        high = self.nearest(value)
        self.constant(f"{name}_hi", high)
        self.constant(f"{name}_lo", value - high)

    def polynomial(self, name: str, curve: Series, error: float, coefficients: list[mp.mpf]) -> None:
        interval = f"[{mp.nstr(curve.low, 4)}, {mp.nstr(curve.high, 4)}]"
        self.lines.append(f"  // {curve.comment} on {interval}, 2^{error:.1f}")
        self.lines.append(f"  static DEVICE {self.cuda} {name}({self.cuda} x) {{")
        line = "    return polynomial(x"
        for c in coefficients:
            piece = f", {self.number(c)}"
            if len(line) + len(piece) > 108:
                self.lines.append(line + ",")
                line, piece = " " * 22, piece[1:]
            line += piece
        self.lines += [line + ");", "  }"]

    def series(self, series: Series) -> None:
        coefficients, error = fit(series, self.bits - series.slack)
        self.polynomial(series.name, series, error, coefficients)

    def minimax(self, curve: Minimax) -> None:
        coefficients, error = minimax(curve)
        self.polynomial(curve.name, Series("", curve.comment, curve.value, curve.low, curve.high), error, coefficients)

    def slope(self, name: str) -> None:
        f, start, below, above = SLOPES[name]
        root = mp.findroot(f, start)
        text = f"derivative of {name} over d, d from its root,"
        curve = Series(name, text, lambda d: f(root + d) / d, mp.mpf(below), mp.mpf(above))
        coefficients, error = fit(curve, self.bits)
        self.split(f"{name}_root", root)
        self.polynomial(f"{name}_slope", curve, error, coefficients)

    def erfcx(self, largest: int) -> None:
        k = mp.mpf(4)

        def scaled(q: mp.mpf) -> mp.mpf:
            a = k * (1 + q) / (1 - q)
            return (a + k) * erfcx(a / mp.sqrt(2)) / 2

        text = "((a + 4) erfcx(a / sqrt 2) / 2 - first) / q, q = (a - 4) / (a + 4),"
        curve = Series("half_erfcx", text, scaled, mp.mpf(-1), (largest - k) / (largest + k))
        self.leading(curve)

    def leading(self, curve: Series) -> None:
        """The first coefficient apart, with its rounding error, and the rest as `<name>_tail`."""
        coefficients, error = fit(curve, self.bits)
        self.split(f"{curve.name}_first", coefficients[0])
        self.polynomial(f"{curve.name}_tail", curve, error, coefficients[1:])

    def constants(self, trim: int) -> None:
        ln2 = mp.log(2)
        high = mp.mpf(int(ln2 * 2**trim)) / 2**trim
        self.constant("log2e", 1 / ln2)
        self.constant("log2e_lo", 1 / ln2 - mp.mpf(float(self.scalar(1 / ln2))))
        self.constant("ln2_hi", high)
        self.constant("ln2_lo", ln2 - high)
        self.split("gelu_tanh_linear", 2 * mp.sqrt(2 / mp.pi))
        self.split("gelu_tanh_cubic", 2 * mp.sqrt(2 / mp.pi) * mp.mpf("0.044715"))
        self.constant("normal_density_0", 1 / mp.sqrt(2 * mp.pi))
        self.split("selu_scale", SELU_SCALE)
        self.split("selu_scaled_alpha", SELU_SCALE * SELU_ALPHA)

    def text(self) -> str:
        return "\n".join([*self.lines, "};", ""])


def full(cuda: str, scalar: type[np.floating], bits: int, trim: int, largest: int) -> str:
    """Series of an accumulator: errors well below its rounding, ln 2 split so that n * ln2_hi is exact."""
    writer = Writer(cuda, cuda, scalar, bits)
    writer.constants(trim)
    for series in common_series():
        writer.series(series)
    writer.leading(TANHSHRINK)
    writer.erfcx(largest)
    for name in SLOPES:
        writer.slope(name)
    return writer.text()


TINY = mp.mpf("1e-9")
#: How far from the zero of a derivative 16-bit storage takes its expansion.
NEAR = mp.mpf("0.125")
#: Weights make the error one of the whole function, relative to it.
SIXTEEN = (
    Minimax("log1p_tail", "(log1p(e) / e - 1) / e", log1p_second, lambda e: e * e / mp.log1p(e), TINY, mp.mpf(1), 5),
    Minimax(
        "expm1_tail", "((e^x - 1) / x - 1) / x", expm1_second, lambda x: x * x / abs(mp.expm1(x)),
        mp.mpf("-0.36"), mp.mpf("0.36") + TINY, 3,
    ),
    Minimax(
        "tanh_tail", "(tanh(x) / x - 1) / w of w = x^2", tanh_second, lambda w: w * mp.sqrt(w) / mp.tanh(mp.sqrt(w)),
        TINY, mp.mpf("0.36"), 2,
    ),
    Minimax(
        "half_erfcx", "(a + 3) erfcx(a / sqrt 2) / 2 of s = a / (a + 3)", half_erfcx, lambda s: 1 / half_erfcx(s),
        mp.mpf(0), mp.mpf(20) / 23, 7,
    ),
    Minimax(
        "gelu_tail_slope", "(erfcx(a / sqrt 2) / 2 - a / sqrt(2 pi)) / (a - root) of s = a / (a + 3)", gelu_tail_slope,
        lambda s: 1 / abs(gelu_tail_slope(s)), mp.mpf(0), mp.mpf(20) / 23, 5,
    ),
    Minimax(
        "log_tail", "(log1p(f) - f + f^2 / 2) / f^3", log_tail, lambda f: abs(f**3 / mp.log1p(f)),
        mp.mpf("-0.3336"), mp.mpf("0.3338"), 4,
    ),
)  # fmt: skip


#: Where the functions of 16 bits have no better form.
ABOUT_ROOT = ("gelu_tanh", "swish", "mish")


def slope_about_root(name: str) -> Minimax:
    """The derivative over the distance from its zero, close to that."""
    f, start, *_ = SLOPES[name]
    root = mp.findroot(f, start)
    text = f"derivative of {name} over d, d from its root,"
    return Minimax(
        f"{name}_slope", text, lambda d: f(root + d) / d, lambda d: abs(d / f(root + d)), -NEAR, NEAR + TINY, 3
    )


def sixteen() -> str:
    """Series in float for results of 11 bits."""
    writer = Writer("Sixteen", "float", np.float32, 20)
    writer.series(next(series for series in common_series() if series.name == "exp_tail"))
    writer.leading(TANHSHRINK)
    for curve in (*SIXTEEN, *map(slope_about_root, ABOUT_ROOT)):
        writer.minimax(curve)
    return writer.text()


def main() -> None:
    """Fit and write."""
    single = full("float", np.float32, bits=28, trim=24, largest=15)
    double = full("double", np.float64, bits=57, trim=51, largest=39)
    TARGET.write_text("\n".join([HEAD, sixteen(), single, double]))
    print(f"wrote {TARGET}")


if __name__ == "__main__":
    main()
