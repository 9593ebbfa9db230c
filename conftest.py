"""Runs the examples of README.md and docs: every ```python block; an ```output block is what the one before printed."""

from __future__ import annotations

import gc
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

from resilience import circuit_breakers
from resilience.events import disable_logging

_run = PythonEvaluator()


def _run_and_listen(example: Example) -> None:
    printed = StringIO()
    _all_shown(example.namespace)
    with redirect_stdout(printed):
        _run(example)
    example.namespace["_printed"] = printed.getvalue()


def _compare_output(example: Example) -> None:
    printed = example.namespace.pop("_printed", "")
    if printed != example.parsed:
        raise AssertionError(f"the page says\n{example.parsed}\nthe example printed\n{printed}")


def _all_shown(namespace: dict[str, Any]) -> None:
    printed = namespace.pop("_printed", "")
    if printed:
        raise AssertionError(f"an example prints what its page does not show:\n{printed}")


def _begin(namespace: dict[str, Any]) -> None:
    namespace["__name__"] = "example"  # functions get it as their module, and breakers their names from it
    namespace["_registered"] = [breaker.name for breaker in circuit_breakers]
    disable_logging()


def _end(namespace: dict[str, Any]) -> None:
    disable_logging()
    for breaker in circuit_breakers:
        if breaker.name not in namespace["_registered"]:
            circuit_breakers.remove(breaker.name)  # the next page may use the same names
    _all_shown(namespace)
    namespace.clear()
    gc.collect()  # a pipeline that is left over would go on listening


examples = Sybil(
    parsers=[
        CodeBlockParser("python", _run_and_listen),
        CodeBlockParser("output", _compare_output),
    ],
    patterns=["README.md", "docs/*.md", "docs/**/*.md"],
    excludes=["*/README.md"],
    setup=_begin,
    teardown=_end,
)

pytest_collect_file = examples.pytest()
