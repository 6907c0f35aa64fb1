"""The command line, ``python -m dnnprims <command>``: each command is a module with ``main(arguments)``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from . import __version__
from .errors import DnnprimsError

#: Command -> (module, one line of help).
COMMANDS = {
    "demo": ("dnnprims.demo", "train a classifier of handwritten digits through the public API"),
    "doctor": ("dnnprims.doctor", "say which layer of the installation fails, and what to do"),
    "list": ("dnnprims.listing", "print which primitive takes which dtype on which backend"),
    "replay": ("dnnprims.conformance.replay", "make one call again from its line, check it and time it"),
    "tune": ("dnnprims.tune", "choose algorithms of matrix products by timing, and keep them in a file"),
    "verify": ("dnnprims.verification", "run the conformance cases against the float64 reference"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 well, 1 not well, 2 wrong usage, 130 interrupted."""
    given = _parser().parse_args(arguments)
    module, _ = COMMANDS[given.command]
    try:
        return int(import_module(module).main(given.arguments))
    except DnnprimsError as error:
        print(f"dnnprims {given.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {words}" for name, (_, words) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m dnnprims",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"commands:\n{commands}\n\n`python -m dnnprims <command> --help` lists a command's options.",
    )
    parser.add_argument("--version", action="version", version=f"dnnprims {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="command", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="options of the command")
    return parser


if __name__ == "__main__":
    sys.exit(main())
