"""Run one task and print what it returned.

python -m benchmarks.support.child loading.ours:first_batch '{"root": "..."}'
"""

from __future__ import annotations

import json
import sys

from benchmarks.support.measure import MARK, UnavailableError, task_named


def main() -> None:
    """Run the task that the command line names."""
    name, options = sys.argv[1], json.loads(sys.argv[2])
    try:
        result = task_named(name)(**options)
    except UnavailableError as reason:
        result = {"unavailable": str(reason)}
    print("\n" + MARK + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
