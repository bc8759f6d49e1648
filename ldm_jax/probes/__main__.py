"""python -m ldm_jax.probes"""

import sys

from ldm_jax.cli.probes import main
from ldm_jax.primitives.console import ends_in_one_line

if __name__ == "__main__":
    with ends_in_one_line():
        sys.exit(main())
