"""Readers for the networks beside the model: LPIPS on VGG16, InceptionV3, the patch discriminator, the preview decoder.

    read_lpips("vgg16-397923af.pth", "vgg.pth")      torchvision's VGG16, and LPIPS's weights on its features
    read_lpips("model.ckpt")                         both out of a CompVis first stage, or a whole LPIPS state dict
    read_inception("pt_inception-2015-12-05-6726825d.pth")
    read_discriminator("model.ckpt")
    read_tiny_decoder("taesd/")
    read_clip("clip-vit-large-patch14/")             CLIP's towers, to compare pictures with pictures and with words

Each returns the parameters of the module of that name, leaves still on disk.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from ldm_jax.weights import files, layouts, naming
from ldm_jax.weights.naming import Weight
from ldm_jax.weights.stored import Stored

# VGG16's convolutions by slice, numbered as in torchvision's vgg16().features.
SLICES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))

_POOLED = ("branch1x1", "branch_pool")
_DOUBLE = ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
_SEVEN = ("branch7x7_1", "branch7x7_2", "branch7x7_3", *(f"branch7x7dbl_{i}" for i in range(1, 6)))
_FORKED = ("branch3x3_1", "branch3x3_2a", "branch3x3_2b", "branch3x3dbl_1", "branch3x3dbl_2")
INCEPTION = {
    "": ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
    **dict.fromkeys(("Mixed_5b", "Mixed_5c", "Mixed_5d"), (*_POOLED, "branch5x5_1", "branch5x5_2", *_DOUBLE)),
    "Mixed_6a": ("branch3x3", *_DOUBLE),
    **dict.fromkeys(("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"), (*_POOLED, *_SEVEN)),
    "Mixed_7a": ("branch3x3_1", "branch3x3_2", *(f"branch7x7x3_{i}" for i in range(1, 5))),
    **dict.fromkeys(("Mixed_7b", "Mixed_7c"), (*_POOLED, *_FORKED, "branch3x3dbl_3a", "branch3x3dbl_3b")),
}


def read_lpips(path: str | Path, weights: str | Path | None = None) -> dict:
    """The parameters of LPIPS. `path`: a whole LPIPS, alone or inside a first stage, or a VGG16, which needs `weights`,
    the file of LPIPS's own linear layers. Raises ValueError if something is missing or left over."""
    tensors = _inside(_tensors(path), "perceptual_loss.")
    if weights is not None:
        tensors = tensors | _tensors(weights)
    slices = {number: f"net.slice{i + 1}.{number}" for i, numbers in enumerate(SLICES) for number in numbers}
    found: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        stem, _, leaf = name.rpartition(".")
        number = stem.removeprefix("features.")
        if stem.startswith("features.") and number.isdigit() and int(number) in slices:
            found[f"{slices[int(number)]}.{leaf}"] = tensor
        elif not name.startswith(("classifier.", "scaling_layer.")):
            found[name] = tensor
    wanted = [f"{stem}.{leaf}" for stem in slices.values() for leaf in ("weight", "bias")]
    wanted += [f"lin{i}.model.1.weight" for i in range(len(SLICES))]
    return tree_of(wanted, found, f"{path}: LPIPS")


def read_inception(path: str | Path) -> dict:
    """The parameters of the Frechet inception distance's InceptionV3, from pytorch-fid's file."""
    units = [f"{block}.{unit}".lstrip(".") for block, names in INCEPTION.items() for unit in names]
    wanted = [f"{unit}.bn.{leaf}" for unit in units for leaf in ("weight", "bias", "running_mean", "running_var")]
    wanted += [f"{unit}.conv.weight" for unit in units] + ["fc.weight", "fc.bias"]
    return tree_of(wanted, _tensors(path), f"{path}: InceptionV3")


def read_discriminator(path: str | Path) -> dict:
    """The parameters of a patch discriminator, alone or inside a first stage. Its batch norms keep no statistics."""
    tensors = _inside(_tensors(path), "discriminator.")
    tensors = {name: tensor for name, tensor in tensors.items() if "running_" not in name and not name.endswith(".initialized")}
    if any(name.endswith(".loc") for name in tensors):  # ActNorm's loc and scale are [1, C, 1, 1]
        tensors = {
            name: tensor if tensor.ndim < 4 or tensor.shape[0] > 1 or name.endswith(".weight")
            else tensor.map(lambda a: a.reshape(-1), (tensor.size,))
            for name, tensor in tensors.items()
        }  # fmt: skip
    convolutions = [name for name, tensor in tensors.items() if tensor.ndim == 4 and name.endswith(".weight")]
    if not convolutions or not all(name.startswith("main.") for name in tensors):
        raise ValueError(f"{path}: no patch discriminator (main.*) among {len(tensors)} tensors")
    return tree_of(tensors, tensors, f"{path}: discriminator")


def read_tiny_decoder(path: str | Path) -> dict:
    """The parameters of the tiny decoder, from a folder or file of diffusers' AutoencoderTiny, or TAESD's own file, whose
    layers are numbered one higher."""
    path = Path(path)
    tensors = files.folder_tensors(path, [])[0] if path.is_dir() else _tensors(path)
    found = naming.within(tensors, "decoder.layers.")
    if not found:
        shifted = (name.partition(".") for name in tensors if name.partition(".")[0].isdigit())
        found = {f"{int(number) - 1}.{rest}": tensors[f"{number}.{rest}"] for number, _, rest in shifted}
    if not found:
        raise ValueError(f"{path}: no tiny decoder (decoder.layers.*) among {len(tensors)} tensors")
    found = naming.prefixed(found, "layers.")
    return tree_of(found, found, f"{path}: tiny decoder")


# What transformers' CLIPVisionConfig and CLIPTextConfig are where a file leaves fields out: ViT-B/32.
_VISION = {"image_size": 224, "patch_size": 32, "num_channels": 3, "hidden_size": 768, "intermediate_size": 3072}
_VISION |= {"num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_TEXT = {"vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12}
_TEXT |= {"num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_TEXT |= {"eos_token_id": None}


def read_clip(path: str | Path) -> dict[str, tuple[dict, dict]]:
    """CLIP's towers in a folder of transformers: of a CLIPModel "image" and "text", of a CLIPVisionModelWithProjection
    "image" alone. Of each the fields of our module (`CLIPVision`, `CLIPText`) and its parameters."""
    folder = Path(path)
    config = files.read_json(folder / "config.json")
    tensors = files.folder_tensors(folder, [])[0]
    whole = "vision_config" in config
    parts = {"image": (config["vision_config"] if whole else config, _VISION, "vision_model.", "visual_projection.weight")}
    if whole:
        parts["text"] = (config["text_config"], _TEXT, "text_model.", "text_projection.weight")
    towers = {}
    for name, (said, defaults, prefix, projection) in parts.items():
        if projection not in tensors:
            raise ValueError(f"{folder}: no {projection}; a CLIP tower without its projection can't be compared with others")
        found = naming.within(tensors, prefix) | {projection: tensors[projection]}
        found = {key: tensor for key, tensor in found.items() if not key.endswith("position_ids")}
        fields = {field: said.get(field, value) for field, value in defaults.items()}
        fields["projection_dim"] = tensors[projection].shape[0]
        layout = layouts.clip_vision(fields) if name == "image" else layouts.clip_text(fields)
        towers[name] = (fields, naming.nested(layout, naming.match(layout, found, f"{folder}: {prefix}")))
    return towers


def _tensors(path: str | Path) -> dict[str, Stored]:
    tensors = files.tensors(Path(path), [])
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


def _inside(tensors: Mapping[str, Stored], part: str) -> dict[str, Stored]:
    """The tensors under `part`, wherever in a first stage's file it is; all of them if it is nowhere."""
    for prefix in (part, f"loss.{part}", f"first_stage_model.loss.{part}"):
        if found := naming.within(tensors, prefix):
            return found
    return dict(tensors)


def tree_of(wanted: Iterable[str], tensors: Mapping[str, Stored], where: str) -> dict:
    """The tensors `wanted` as parameters, kinds told by names and axes. ValueError for what is missing or left over."""
    naming.account(wanted, tensors, where)
    layout = [_weight(name, tensors[name]) for name in wanted]
    return naming.nested(layout, tensors)


def _weight(name: str, tensor: Stored) -> Weight:
    leaf = name.rsplit(".", 1)[-1]
    kind = {"bias": "bias", "weight": "kernel" if tensor.ndim > 1 else "scale"}.get(leaf, "raw")
    return Weight(name, tensor.shape, kind, (name,))
