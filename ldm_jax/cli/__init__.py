"""What the commands do: sample.py, and python -m ldm_jax.{probes, retrieval, plan, weights}."""
