"""python -m ldm_jax.app"""

import sys

from ldm_jax.primitives.console import ends_in_one_line, print_anything, quiet

if __name__ == "__main__":
    print_anything()
    quiet()
    with ends_in_one_line():
        from ldm_jax.cli.app import main

        sys.exit(main())
