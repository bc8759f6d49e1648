"""The commands that come with the package. Each says at once that it has begun: their libraries take seconds to import."""

import sys

from ldm_jax.primitives.console import called, ends_in_one_line, print_anything, quiet


def _begin(name: str) -> None:
    print_anything()
    quiet()
    print(f"{called(name)}: starting", file=sys.stderr, flush=True)


def sample() -> None:
    """ldm-sample: draws pictures."""
    _begin("ldm-sample")
    with ends_in_one_line():
        from ldm_jax.cli.sample_command import main

        main(sys.argv)


def evaluate() -> None:
    """ldm-eval: what a model's pictures are worth."""
    _begin("ldm-eval")
    with ends_in_one_line():
        from ldm_jax.cli.evaluation import main

        sys.exit(main())


def app() -> None:
    """ldm-app: a page to play with a model."""
    _begin("ldm-app")
    with ends_in_one_line():
        from ldm_jax.cli.app import main

        sys.exit(main())


def plan() -> None:
    """python -m ldm_jax.plan: what a config costs on chips that aren't there."""
    _begin("ldm_jax.plan")
    with ends_in_one_line():
        from ldm_jax.cli.plan import main

        sys.exit(main())


def probes() -> None:
    """python -m ldm_jax.probes: small networks that judge pictures."""
    _begin("ldm_jax.probes")
    with ends_in_one_line():
        from ldm_jax.cli.probes import main

        sys.exit(main())


def retrieval() -> None:
    """python -m ldm_jax.retrieval: data bases of pictures, and neighbours in them."""
    _begin("ldm_jax.retrieval")
    with ends_in_one_line():
        from ldm_jax.cli.retrieval import main

        sys.exit(main())


def weights() -> None:
    """ldm-weights: checkpoints inspected and converted."""
    print_anything()
    with ends_in_one_line():
        from ldm_jax.cli.weights import main

        sys.exit(main())
