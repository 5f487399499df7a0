"""`python -m bloomery.cli` is `bloomery`."""

import sys

from bloomery.cli import main

sys.exit(main())
