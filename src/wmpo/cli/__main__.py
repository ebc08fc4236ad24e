"""`python -m wmpo.cli` is `wmpo`."""

import sys

from wmpo.cli import main

sys.exit(main())
