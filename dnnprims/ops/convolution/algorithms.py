"""The choice among the algorithms of a product: the first that can do it and is not known to be slower."""

from __future__ import annotations

from math import prod

from ...runtime.launch import choose
from ...runtime.tuning import prefer
from .depthwise import DEPTHWISE
from .direct import DIRECT
from .first import FIRST_DATA, FIRST_FILTER, FIRST_FORWARD
from .first_relaid import first_after_copy
from .hopper import HOPPER
from .hopper_filter import HOPPER_FILTER
from .hopper_first import HOPPER_FIRST
from .hopper_first_filter import HOPPER_FIRST_FILTER
from .hopper_groups import HOPPER_FILTER_GROUPS, HOPPER_GROUPS, HOPPER_PATCH_GROUPS
from .hopper_joined import HOPPER_FILTER_JOINED, HOPPER_JOINED, HOPPER_SPLIT_JOINED
from .hopper_patch import HOPPER_PATCH, HOPPER_PATCH_FILTER
from .hopper_rows import HOPPER_ROWS
from .hopper_split import HOPPER_SPLIT
from .hopper_turned import HOPPER_TURNED
from .implicit import IMPLICIT_FFMA, IMPLICIT_MMA
from .joined import JOINED_TAPS, JOINED_TAPS_DATA, JOINED_TAPS_FILTER
from .library import LIBRARY
from .library_planes import LIBRARY_PLANES, LIBRARY_PLANES_FILTER
from .product import Algorithm, Product, Work
from .relaid import after_copies

COPIED_LIBRARY = after_copies(LIBRARY)
#: Copies do not pay for few channels, which padding would make enough.
COPIED_MMA = after_copies(IMPLICIT_MMA)._replace(slower=IMPLICIT_MMA.slower)

_ON_HOPPER, _FILTERS_ON_HOPPER = (HOPPER_PATCH, HOPPER_SPLIT, HOPPER), (HOPPER_PATCH_FILTER, HOPPER_FILTER)
_COPIED, _FILTERS_COPIED = (tuple(map(after_copies, each)) for each in (_ON_HOPPER, _FILTERS_ON_HOPPER))
_IN_PLANES, _FILTERS_IN_PLANES = (
    (LIBRARY, planes, COPIED_LIBRARY) for planes in (LIBRARY_PLANES, LIBRARY_PLANES_FILTER)
)
_IN_GROUPS = (HOPPER_PATCH_GROUPS, HOPPER_GROUPS)
_ON_TENSOR_CORES, _PORTABLE = (IMPLICIT_MMA, COPIED_MMA), (IMPLICIT_FFMA, DIRECT)
_REST, _FILTERS_REST = (
    (*matrices, *copied, *_ON_TENSOR_CORES)
    for matrices, copied in ((_IN_PLANES, _COPIED), (_FILTERS_IN_PLANES, _FILTERS_COPIED))
)


def _first(inner: Algorithm) -> tuple[Algorithm, ...]:
    return (first_after_copy(inner), inner)


#: In the order in which they are asked, for each direction; the last one takes any problem.
ALGORITHMS: dict[str, tuple[Algorithm, ...]] = {
    "forward": (
        *(HOPPER_ROWS, HOPPER_SPLIT_JOINED, HOPPER_JOINED, *_ON_HOPPER, DEPTHWISE, *_IN_GROUPS),
        *(HOPPER_FIRST, *_first(FIRST_FORWARD), *_REST, JOINED_TAPS, *_PORTABLE),
    ),
    "data": (
        *(HOPPER_ROWS, HOPPER_JOINED, *_ON_HOPPER, DEPTHWISE, *_IN_GROUPS),
        *(*_first(FIRST_DATA), *_REST, JOINED_TAPS_DATA, *_PORTABLE),
    ),
    "filter": (
        *(HOPPER_ROWS, HOPPER_FILTER_JOINED, *_FILTERS_ON_HOPPER, DEPTHWISE, HOPPER_FILTER_GROUPS),
        *(HOPPER_TURNED, HOPPER_FIRST_FILTER, *_first(FIRST_FILTER)),
        *(*_FILTERS_REST, JOINED_TAPS_FILTER, *_PORTABLE),
    ),
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
