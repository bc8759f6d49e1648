"""python -m ldm_jax.retrieval"""

import sys

from ldm_jax.cli.retrieval import main

if __name__ == "__main__":
    sys.exit(main())
