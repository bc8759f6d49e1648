"""python -m ldm_jax.evaluation"""

import sys

from ldm_jax.cli.evaluation import main
from ldm_jax.primitives.console import ends_in_one_line

if __name__ == "__main__":
    with ends_in_one_line():
        sys.exit(main())
