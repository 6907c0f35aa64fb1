"""What `examples/resnet50.py` prints, as records: images per second, and milliseconds of each kind of call in a step.

It runs in a process of its own, so that the GPU has room for it; without a GPU on a few little images.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).resolve().parent.parent.parent / "examples" / "resnet50.py"
LITTLE = {"batch": 2, "size": 32, "width": 8, "blocks": "1,1,1,1", "classes": 10, "steps": 2, "dtype": "float32"}
#: Ways of PyTorch, by the peer that stands for them.
WAYS = {"torch": "eager", "compile": "compile"}
_RATE = re.compile(r"^(\S.*?) +([\d.]+) images/s +([\d.]+) ms a step$", re.MULTILINE)
_SHARE = re.compile(r"^ +(\S.*?) +([\d.]+) ms +[\d.]+%$", re.MULTILINE)


def example_records(backend: str, peers: Sequence[str], *, little: bool) -> Iterator[dict[str, Any]]:
    """A record for each line that the program prints; `little` is the network that tries the instrument."""
    ways = ",".join(WAYS[peer] for peer in peers if peer in WAYS) or "none"
    given = {"backend": backend, "peers": ways, **(LITTLE if little else {})}
    command = [sys.executable, str(PROGRAM), *(f"--{name}={value}" for name, value in given.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for name, rate, ms in _RATE.findall(done.stdout):
        yield {"name": f"resnet50.{name}", "images/s": float(rate), "ms": float(ms)}
    for kind, ms in _SHARE.findall(done.stdout):
        yield {"name": f"resnet50.step.{kind}", "ms": float(ms)}
    if done.returncode:
        yield {"name": "resnet50", "failed": (done.stderr.strip().splitlines() or ["-"])[-1]}
