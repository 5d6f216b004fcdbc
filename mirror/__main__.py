"""`python -m mirror` is `pps-mirror`."""

import sys

from mirror.cli.main import main

sys.exit(main())
