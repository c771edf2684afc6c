"""`python -m crisp_stream` is the command `crisp-stream`."""

import sys

from crisp_stream.cli.main import main

sys.exit(main())
