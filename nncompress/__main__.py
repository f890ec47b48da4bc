"""`python -m nncompress` is the console command."""

import sys

from nncompress.cli import main

sys.exit(main())
