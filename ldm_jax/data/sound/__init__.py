"""Sounds: files, log-mel spectrograms and back, and the transform of rows.

    samples, rate = read_sound("three.wav")                    float32 [T, channels] in [-1, 1]
    mel = Mel(rate=16000, mels=64)
    array = mel.scaled(mel.power(samples.T))                   [channels, mels, frames] in [-1, 1]
    samples = griffin_lim(mel.magnitude(array), mel.window, mel.hop)
"""

from ldm_jax.data.sound.files import SOUNDS, read_sound, resampled, wav_bytes
from ldm_jax.data.sound.mel import Mel
from ldm_jax.data.sound.transform import SoundTransform, WaveformTransform
from ldm_jax.data.sound.vocoder import griffin_lim

__all__ = ["SOUNDS", "Mel", "SoundTransform", "WaveformTransform", "griffin_lim", "read_sound", "resampled", "wav_bytes"]
