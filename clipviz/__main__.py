"""`python -m clipviz`, and `torchrun ... -m clipviz`."""

import sys

from clipviz.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
