"""Spoken digits from a prompt, "say three": log-mel spectrograms and a vocoder, small enough for two CPU cores.

    python benchmarks/spoken_digits.py make --out data/spoken_digits
    python train.py --config=configs/spoken_digits.py
    python sample.py --workdir runs/spoken_digits --prompt "say three" --prompt "a woman says seven"

The first command needs espeak-ng. Other recordings work the same: a folder of WAV files with a metadata.jsonl, a caption and a
label each, --config.data.path=FOLDER. docs/sound.md says how good it gets.
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config() -> ConfigDict:
    config = shapes.get_config()
    shapes.as_published(config)
    shapes.plain_first_stage(config)
    config.name = "spoken_digits"

    config.data.medium = "sound"
    config.data.source = "folder"
    config.data.path = "data/spoken_digits/digits"
    with config.ignore_type():
        config.data.image_size = (64, 48)  # bands on the mel scale, and frames: 48 * 256 samples, 0.77 s
    config.data.sound = ConfigDict()
    config.data.sound.rate = 16_000  # samples a second; files with more are resampled
    config.data.sound.window = 1024  # samples that a frame looks at
    config.data.sound.hop = 256  # samples from frame to frame
    config.data.sound.low = 0.0  # Hz, where the lowest band begins
    config.data.sound.high = 0.0  # Hz, where the highest ends; 0: half the rate
    config.data.sound.scale = "slaney"  # "slaney" | "htk": the mel scale
    config.data.sound.floor_db = -80.0  # what counts as silence, beside a sine of amplitude 1
    config.data.sound.channels = 1  # 1 (mono) | 2 (stereo)
    config.data.sound.mix = False  # whether files of the other number of channels are mixed, or refused
    config.data.sound.upsample = False  # whether files of a lower rate are taken, or refused
    config.data.sound.shortest = 0.1  # seconds; shorter files are refused
    config.data.sound.iterations = 64  # of the vocoder

    config.first_stage.in_channels = 1
    config.first_stage.out_ch = 1
    config.first_stage.resolution = 64
    config.first_stage.ch = 12
    config.first_stage.ch_mult = (1, 2, 4, 4)  # eight times smaller: 8 x 6
    config.first_stage.z_channels = 8
    config.first_stage.embed_dim = 8
    config.first_stage_train.steps = 800
    config.network.in_channels = 8
    config.network.out_channels = 8
    config.conditioner.max_seq_len = 8
    config.diffusion_train.steps = 1500
    config.sampling.guidance_scale = 3.0
    return config
