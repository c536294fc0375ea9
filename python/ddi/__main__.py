"""`python -m ddi` is the `ddi` command."""

import sys

from .cli import main

sys.exit(main())
