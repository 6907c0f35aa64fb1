"""What was found faster by timing, and the file that keeps it: which of cuBLASLt's algorithms, which of our variants.

An entry holds for one device, one version of cuBLASLt, one of this library and one problem; anywhere else it is passed
over. It says whether the choice gives the same bits as what would be taken without it. A file is JSON, read only where
it is named, and nothing of it reaches a compiler or the driver: it picks among what cuBLASLt itself offers for the
problem, and among the variants that may take it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..descriptors import ActivationDescriptor
from ..errors import BadParamError

FORMAT, VERSION = "dnnprims tuning", 1

#: Attributes that tell cuBLASLt's algorithms apart, the fields of `algorithms.Algorithm`.
Configuration = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Where times hold.

    Attributes
    ----------
    device : str
        Name of the GPU.
    cublaslt : int
        Version of cuBLASLt, 0 where it is not there.
    dnnprims : str
        Version of this library.
    """

    device: str
    cublaslt: int
    dnnprims: str


@dataclass(frozen=True)
class Entry:
    """One choice.

    Attributes
    ----------
    device, cublaslt, dnnprims : str, int, str
        As of `Place`.
    problem : str
        `product_key` of a product, or a layer's, as its plan names it.
    variant : str
        Variant of a layer; empty for a product.
    algorithm : tuple of int
        Configuration of cuBLASLt's algorithm for a product; empty for a layer.
    bits : str
        ``same`` or ``other``: whether results compared equal, bit for bit, with those of the choice without timing.
    default_us, tuned_us : float
        Median times of that choice and of this one.
    """

    device: str
    cublaslt: int
    dnnprims: str
    problem: str
    variant: str
    algorithm: Configuration
    bits: str
    default_us: float
    tuned_us: float

    @property
    def key(self) -> tuple[Place, str]:
        """What there is one entry for."""
        return Place(self.device, self.cublaslt, self.dnnprims), self.problem


@dataclass(frozen=True, eq=False)
class Tuning:
    """Entries, at most one for each place and problem."""

    entries: Mapping[tuple[Place, str], Entry] = field(default_factory=dict)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Tuning:
        """The entries; of several for one problem the last counts."""
        return cls({entry.key: entry for entry in entries})

    def merged(self, other: Tuning) -> Tuning:
        """Both; where both know a problem, the other's entry counts."""
        return Tuning({**self.entries, **other.entries})

    def at(self, place: Place) -> Tuned:
        """What holds at a place."""
        return Tuned({problem: entry for (where, problem), entry in self.entries.items() if where == place})

    def save(self, path: str | Path) -> None:
        """Write the entries to a file, in a fixed order."""
        import json  # files of choices are rare, and every import of the package would pay

        rows = sorted((asdict(entry) for entry in self.entries.values()), key=lambda row: json.dumps(row))
        lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        text = f'{{"format": "{FORMAT}", "version": {VERSION}, "entries": [\n{lines}\n]}}\n'
        Path(path).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, op: str = "load_tuning", param: str = "path") -> Tuning:
        """Read a file.

        Raises
        ------
        BadParamError
            There is no such file, or it is none of these; the message names the place.
        """
        import json

        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise _refuse(op, param, path, str(error).splitlines()[0]) from None
        if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("entries"), list):
            raise _refuse(op, param, path, f'no "format": "{FORMAT}" with a list of entries')
        if found.get("version") != VERSION:
            raise _refuse(op, param, path, f"version {found.get('version')!r}, this library reads {VERSION}")
        return cls.of(_entry(row, number, op, param, path) for number, row in enumerate(found["entries"]))

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"<tuning of {len(self)} problems>"


@dataclass(frozen=True, eq=False)
class Tuned:
    """What plans ask: the choice for a problem on the device at hand."""

    entries: Mapping[str, Entry] = field(default_factory=dict)

    def algorithm(self, problem: str) -> Configuration:
        """Configuration to take for a product, empty where nothing is known."""
        entry = self.entries.get(problem)
        return entry.algorithm if entry else ()

    def variant(self, problem: str) -> str:
        """Variant to take for a layer, empty where nothing is known."""
        entry = self.entries.get(problem)
        return entry.variant if entry else ""


#: What a handle has that was given no file.
UNTUNED = Tuned()


def product_key(problem: Any) -> str:
    """A product as text: every field of a `blaslt.MatmulProblem` but the factors, which no algorithm depends on."""
    values = {f.name: getattr(problem, f.name) for f in fields(problem) if f.name not in ("alpha", "beta")}
    if not values["batches"]:
        del values["batches"]
    return "product " + " ".join(f"{name}={_word(value)}" for name, value in values.items())


def layer_key(op: str, math: str, options: tuple[Any, ...], operands: Mapping[str, Any]) -> str:
    """A call as text, from its options and the descriptors of what it reads, by name."""
    tensors = [f"{name}={_tensor(d)}" for name, d in operands.items() if d is not None]
    return " ".join([op, math, *map(_option, options), *tensors])


def _option(option: Any) -> str:
    """An activation alike, whether it is given by name or by descriptor."""
    if isinstance(option, ActivationDescriptor):
        plain = ActivationDescriptor(option.mode)
        return option.mode if option == plain else f"{option.mode}{option.parameters}".replace(" ", "")
    return str(option).replace(" ", "")


def _tensor(d: Any) -> str:
    extents = "x".join(map(str, d.shape))
    return f"{d.dtype.name}:{extents}" + ("" if d.vectorizable else f":aligned{d.alignment}")


def prefer(variants: Iterable[tuple[str, str | None]], tuned: str) -> tuple[tuple[str, str | None], ...]:
    """The variants for `launch.choose`, with a reason against those before the `tuned` one, where that may be taken."""
    listed = tuple(variants)
    names = [name for name, reason in listed if reason is None]
    if tuned not in names:
        return listed
    at = [name for name, _ in listed].index(tuned)
    slower = f"{tuned} was faster when tuned"
    return tuple((name, reason or (slower if i < at else None)) for i, (name, reason) in enumerate(listed))


def _word(value: Any) -> str:
    return ";".join(map(str, value)) if isinstance(value, tuple) else str(int(value))


def _entry(row: Any, number: int, op: str, param: str, path: str | Path) -> Entry:
    """An entry of a file, each field of its kind."""
    kinds = {"cublaslt": int, "algorithm": list, "default_us": float, "tuned_us": float}
    names = [f.name for f in fields(Entry)]
    if not isinstance(row, dict) or sorted(row) != sorted(names):
        raise _refuse(op, param, path, f"entry {number} has not the fields {', '.join(names)}")
    for name in names:
        if type(row[name]) is not kinds.get(name, str):
            raise _refuse(op, param, path, f"{name} of entry {number} is {row[name]!r}")
    if any(type(value) is not int for value in row["algorithm"]) or bool(row["algorithm"]) == bool(row["variant"]):
        raise _refuse(op, param, path, f"entry {number} has neither one algorithm nor one variant")
    if row["bits"] not in ("same", "other"):
        raise _refuse(op, param, path, f"bits of entry {number} is {row['bits']!r}, neither same nor other")
    return Entry(**{**row, "algorithm": tuple(row["algorithm"])})


def _refuse(op: str, param: str, path: str | Path, why: str) -> BadParamError:
    rule = "a file that `python -m dnnprims tune` has written"
    return BadParamError(op, f"is no tuning file ({why})", param=param, got=str(path), expected=rule)
