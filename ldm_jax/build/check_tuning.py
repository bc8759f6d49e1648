"""What can be said of a fine-tuning before any data are read: whether the model can be taught what config.diffusion_train asks
for."""

from collections.abc import Mapping
from typing import Any

from ldm_jax.build.adaptation import adapts, control_fields, field_of, make_word, without_word
from ldm_jax.build.autoencoder import make_first_stage
from ldm_jax.build.condition import make_condition
from ldm_jax.build.data import make_medium
from ldm_jax.build.options import dims
from ldm_jax.conditioning import words
from ldm_jax.conditioning.control import NAMES
from ldm_jax.primitives.choices import check_choice

# Groups of config.diffusion_train, a field of theirs, and what is to be on beside it if it is to have an effect.
NEEDED = (
    ("textual_inversion", "initial", "word"), ("dreambooth", "class_prompt", "prior_weight"),
    ("control", "hint_channels", "picture"),
)  # fmt: skip


def check_tuning(config: Mapping[str, Any]) -> None:
    """Raises ValueError where a model that stays as it is isn't named, or can't be taught what is asked for."""
    part = adapts(config)
    for group, name, other in NEEDED:
        section = config["diffusion_train"].get(group, {})
        if section.get(name) and not section.get(other):
            place = f"config.diffusion_train.{group}"
            raise ValueError(f"{place}.{name}={section[name]!r} has no effect without {place}.{other}: set that as well")
    if part and not config["diffusion_train"]["start_from"]:
        raise ValueError(f"{field_of(part)} adapts a model: name it in config.diffusion_train.start_from")
    if config["diffusion_train"].get("dreambooth", {}).get("prior_weight"):
        check_dreambooth(config, part)
    if part == "control":
        check_control(config)
    if part == "word":
        word, kind, place = make_word(config), config["conditioner"]["kind"], field_of("word")
        if kind not in words.KINDS:
            those = ", ".join(words.KINDS)
            raise ValueError(f"{place}={word['word']!r}: config.conditioner.kind={kind!r} reads no prompts; {those} do")
        if len(word["word"].split()) != 1:
            raise ValueError(f"{place}={word['word']!r}: one word without blanks, such as '<thing>'")
        if word["vectors"] > (room := make_condition(without_word(config)).length - 2):
            field = f"{place.removesuffix('word')}vectors={word['vectors']}"
            raise ValueError(f"{field}: a prompt has room for {room} tokens, and the word is as many")
        if not word["initial"]:
            raise ValueError(f"{place.removesuffix('word')}initial='': name a word that the model knows, as which it begins")


def check_dreambooth(config: Mapping[str, Any], part: str) -> None:
    """Raises ValueError where a model can't draw the pictures of a class that keep what it knew."""
    section, kind = config["diffusion_train"]["dreambooth"], config["conditioner"]["kind"]
    where = f"config.diffusion_train.dreambooth.prior_weight={section['prior_weight']}"
    if part not in ("", "lora"):
        raise ValueError(f"{where}: goes with training all of a model, or a LoRA of it, not with {field_of(part)}; set it to 0")
    if not config["diffusion_train"]["start_from"]:
        raise ValueError(f"{where}: the model that draws the class is to be named in config.diffusion_train.start_from")
    if kind not in words.KINDS or not section["class_prompt"]:
        raise ValueError(
            f"{where}: config.diffusion_train.dreambooth.class_prompt={section['class_prompt']!r} with "
            f"config.conditioner.kind={kind!r}: give a model that reads prompts one for the class, such as 'a dog'"
        )
    if make_medium(config).name != "image":
        raise ValueError(f"{where}: goes with pictures, config.data.medium={make_medium(config).name!r}; set it to 0")


def check_control(config: Mapping[str, Any]) -> None:
    """Raises ValueError where no ControlNet can be trained for the network, or its pictures aren't there."""
    field, network = field_of("control"), config["network"]
    picture = check_choice(config["diffusion_train"]["control"]["picture"], NAMES, field)
    if network["kind"] != "unet" or not network.get("use_spatial_transformer"):
        raise ValueError(f"{field}={picture!r}: ControlNets steer U-Nets with use_spatial_transformer")
    if dims(config) != 2:
        raise ValueError(f"{field}={picture!r}: ControlNets are of pictures, config.data.image_size has {dims(config)} sides")
    if config["latents"]["cache"] and config["first_stage"]["kind"] != "none":
        raise ValueError(f"config.latents.cache=True: {field}={picture!r} shows pictures, which a cache lacks; set it to False")
    stage = make_first_stage(config)
    control_fields(config, stage.channels, stage.factor)
    if config["network"]["in_channels"] != stage.channels:
        raise ValueError(f"{field}={picture!r}: a network that is told pictures beside the latents can't be steered")
