"""`python -m conmon` is `crio-conmon`."""

import os

from conmon.cli import main

os._exit(main())
