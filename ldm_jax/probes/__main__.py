"""python -m ldm_jax.probes"""

import sys

from ldm_jax.cli.probes import main

if __name__ == "__main__":
    sys.exit(main())
