"""`python -m crisp_stream` is the command `crisp-stream`."""

import sys

from crisp_stream.cli import main

sys.exit(main())
