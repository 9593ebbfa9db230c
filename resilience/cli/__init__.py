"""The command line: `python -m resilience ...`, installed as the script `resilience` too."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from resilience.errors import ConfigurationError

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        The exit status. Arguments that make no sense end the process with status 2 and a message.
    """
    parser = argparse.ArgumentParser(prog="resilience", description="Live with dependencies that fail.")
    commands = parser.add_subparsers(dest="command", metavar="{demo}", required=True)
    demo = commands.add_parser("demo", help="watch a breaker and a rate limiter earn their keep, on real servers")
    demo.add_argument(
        "--seconds", type=float, default=20.0, metavar="N", help="length of the run, 3 to 600 (default 20)"
    )
    demo.add_argument(
        "--seed", type=int, default=1, metavar="N", help="decides the service's delays and errors (default 1)"
    )
    demo.add_argument("--plain", action="store_true", help="lines instead of a live picture")
    demo.add_argument("--report", type=Path, metavar="FILE.html", help="write one self-contained page with charts")
    arguments = parser.parse_args(argv)
    try:
        return _demo(arguments)
    except ConfigurationError as error:
        demo.error(str(error))
    except KeyboardInterrupt:
        return 130


def _demo(arguments: argparse.Namespace) -> int:
    from .demo.command import DemoOptions, run_demo  # noqa: PLC0415 - the service's process imports this package and needs none of it

    options = DemoOptions(
        seconds=arguments.seconds, seed=arguments.seed, plain=arguments.plain, report=arguments.report
    )
    return run_demo(options, sys.stdout)
