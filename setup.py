"""What setup.cfg can't say: the configs, a folder of its own in the repository, are in a wheel as ldm_jax/configs."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["ldm_jax", "ldm_jax.*"]), "ldm_jax.configs"],
    package_dir={"ldm_jax.configs": "configs"},
)
