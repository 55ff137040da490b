"""`python -m visionssm` is the `visionssm` command."""

import sys

from visionssm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
