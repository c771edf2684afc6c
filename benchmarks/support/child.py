"""Run one task and print what it returned.

python -m benchmarks.support.child loading.ours:first_batch '{"root": "..."}'
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.support.measure import MARK, UnavailableError


def main() -> None:
    """Run the task that the command line names."""
    name, options = sys.argv[1], json.loads(sys.argv[2])
    module, _, function = name.partition(":")
    task: Callable[..., dict[str, Any]] = getattr(importlib.import_module(f"benchmarks.{module}"), function)
    try:
        result = task(**options)
    except UnavailableError as reason:
        result = {"unavailable": str(reason)}
    print("\n" + MARK + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
