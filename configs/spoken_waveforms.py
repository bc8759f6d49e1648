"""Spoken digits as waveforms: strided convolutions of one axis, losses of spectra, and diffusion over 96 latents in a row.

    python benchmarks/spoken_digits.py make --out data/spoken_digits
    python train.py --config=configs/spoken_waveforms.py

No vocoder is needed: docs/sound.md has what it says after how long. For more brilliance
set config.first_stage_loss.disc_weight, whose discriminator then hears patches of the waveform.
"""

from ml_collections import ConfigDict

from configs import spoken_digits


def get_config() -> ConfigDict:
    config = spoken_digits.get_config()
    config.name = "spoken_waveforms"
    config.data.medium = "waveform"
    config.data.sound.rate = 8000
    config.data.sound.window = 512
    config.data.sound.hop = 128
    with config.ignore_type():
        config.data.image_size = (6144,)  # samples, 0.77 s

    config.first_stage.dims = 1
    config.first_stage.kernel_size = 7
    config.first_stage.ch = 16
    config.first_stage.ch_mult = (1, 1, 2, 2, 4, 4, 4)  # 64 times shorter: 96 latents
    config.first_stage_loss.stft_weight = 0.1  # of the distance of spectra, added to that of every sample; 0: none
    config.first_stage_loss.stft_windows = (128, 512, 1024)  # samples that the spectra look at
    config.first_stage_train.steps = 1600  # 4000 here and below: an hour more, and every digit right
    config.first_stage_train.learning_rate = 2e-3

    config.network.dims = 1
    config.diffusion_train.steps = 1600
    return config
