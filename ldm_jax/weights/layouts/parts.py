"""The pieces that layouts are made of. `name` is the reference's spelling, `other` the one of diffusers."""

from ldm_jax.weights.naming import Layout, Weight


def linear(name: str, other: str, into: int, out: int, bias: bool = True, window: tuple[int, ...] = ()) -> Layout:
    """A linear layer, or with a window of ones a convolution that is one."""
    weights = [Weight(f"{name}.weight", (out, into, *window), "kernel", (f"{other}.weight",))]
    return weights + ([Weight(f"{name}.bias", (out,), "bias", (f"{other}.bias",))] if bias else [])


def pointwise(name: str, other: str, into: int, out: int, bias: bool = True) -> Layout:
    """A 1x1 convolution."""
    return linear(name, other, into, out, bias, (1, 1))


def conv(name: str, other: str, into: int, out: int, size: int = 3, bias: bool = True) -> Layout:
    """Names of a convolution's tensors."""
    return linear(name, other, into, out, bias, (size, size))


def norm(name: str, other: str, width: int) -> Layout:
    """Names of a norm's tensors."""
    return [
        Weight(f"{name}.weight", (width,), "scale", (f"{other}.weight",)),
        Weight(f"{name}.bias", (width,), "bias", (f"{other}.bias",)),
    ]


def table(name: str, other: str, rows: int, width: int) -> Layout:
    """The name of an embedding table."""
    return [Weight(f"{name}.weight", (rows, width), "embedding", (f"{other}.weight",))]


def fused_qkv(name: str, other: str, width: int, heads: int) -> Layout:
    """A Conv1d for q, k and v at once, head by head; diffusers has three linear layers."""
    names = [f"{other}.to_{part}" for part in "qkv"]
    return [
        Weight(f"{name}.weight", (3 * width, width, 1), "kernel", tuple(f"{n}.weight" for n in names), heads),
        Weight(f"{name}.bias", (3 * width,), "bias", tuple(f"{n}.bias" for n in names), heads),
    ]
