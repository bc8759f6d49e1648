"""Fashion-MNIST drawn in one to four steps, by any objective of `diffusion.few_steps`, on two CPU cores.

    python train.py --config=fashion_mnist --config.data.path=DATA                      # the first stage, and a teacher
    python train.py --config=fashion_mnist_few_steps:progressive --config.data.path=DATA    # and progressive_4, progressive_2
    python sample.py --workdir runs/fashion_mnist_progressive_2 --label 7 --steps 2

DATA as configs/fashion_mnist.py has it; after the colon what configs/shapes_few_steps.py lists.
"""

from ml_collections import ConfigDict

from configs import fashion_mnist, shapes_few_steps


def get_config(objective: str = "progressive") -> ConfigDict:
    return shapes_few_steps.few_steps(fashion_mnist.get_config(), objective)
