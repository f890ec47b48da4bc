"""`python -m nncompress` is the console command."""

import sys

from nncompress.cli.main import main

sys.exit(main())
