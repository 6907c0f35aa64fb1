"""The rule that every number in a descriptor obeys."""

from __future__ import annotations

from math import isfinite

from ..errors import BadParamError


def finite_number(op: str, name: str, value: object) -> float:
    """Return the value as a float; refuse what is no number, infinite or NaN."""
    try:
        # Text is no number here, although Python would read one from it, nor is what has an imaginary part to lose.
        is_real = not isinstance(value, str | bytes) and getattr(getattr(value, "dtype", None), "kind", "") != "c"
        number = float(value if is_real else None)  # type: ignore[arg-type]
    except OverflowError:
        raise BadParamError(op, "is out of range", param=name, got="an integer too large", expected="a float") from None
    except (TypeError, ValueError):
        raise BadParamError(op, "is not a number", param=name, got=repr(value), expected="a finite number") from None
    if not isfinite(number):
        raise BadParamError(op, "is not finite", param=name, got=value, expected="a finite number")
    return number
