"""The choice among the algorithms of a product: the first that can do it and is not known to be slower."""

from __future__ import annotations

from math import prod

from ...runtime.launch import choose
from ...runtime.tuning import prefer
from .depthwise import DEPTHWISE
from .direct import DIRECT
from .first import FIRST_DATA, FIRST_FILTER, FIRST_FORWARD
from .implicit import IMPLICIT_FFMA, IMPLICIT_MMA
from .library import LIBRARY
from .product import Algorithm, Product, Work
from .relaid import after_copies

COPIED_LIBRARY = after_copies(LIBRARY)
#: Copies do not pay for few channels, which padding would make enough.
COPIED_MMA = after_copies(IMPLICIT_MMA)._replace(slower=IMPLICIT_MMA.slower)

#: In the order in which they are asked, for each direction; the last one takes any problem.
ALGORITHMS: dict[str, tuple[Algorithm, ...]] = {
    "forward": (DEPTHWISE, FIRST_FORWARD, LIBRARY, COPIED_LIBRARY, IMPLICIT_MMA, COPIED_MMA, IMPLICIT_FFMA, DIRECT),
    "data": (DEPTHWISE, FIRST_DATA, LIBRARY, COPIED_LIBRARY, IMPLICIT_MMA, COPIED_MMA, IMPLICIT_FFMA, DIRECT),
    "filter": (DEPTHWISE, FIRST_FILTER, LIBRARY, COPIED_LIBRARY, IMPLICIT_MMA, COPIED_MMA, IMPLICIT_FFMA, DIRECT),
}

Refused = tuple[tuple[str, str], ...]


def work_of(product: Product) -> tuple[str, Work, Refused]:
    """Name of the algorithm, its work, and those before it with their reasons; no work for an empty result."""
    preferred = product.profile.preferred
    algorithms = {algorithm.name: algorithm for algorithm in ALGORITHMS[product.direction]}
    reasons = [(name, _reason(algorithm, product, preferred)) for name, algorithm in algorithms.items()]
    variant, refused = choose(prefer(reasons, preferred))
    name, why = str(variant), dict(reasons).get(preferred)
    if why and preferred not in dict(refused):
        refused = (*refused, (preferred, why))  # what was asked for is answered, also where its turn had not come
    return name, algorithms[name].work(product) if _size(product) else Work(()), refused


def _reason(algorithm: Algorithm, product: Product, preferred: str) -> str | None:
    reason = algorithm.cannot(product)
    return reason if reason or preferred == algorithm.name else algorithm.slower(product)


def _size(product: Product) -> int:
    g = product.g
    return {"forward": prod(g.y_shape), "data": prod(g.x_shape), "filter": g.filter_size}[product.direction]
