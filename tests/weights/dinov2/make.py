"""Makes the two small models of this folder with torch and transformers: python tests/weights/dinov2/make.py"""

from pathlib import Path

import numpy as np
import torch
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

HERE = Path(__file__).resolve().parent
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "patch_size": 4, "image_size": 28}
MODELS = {
    "plain": (Dinov2Config(**SIZES), Dinov2Model),
    "registers": (Dinov2WithRegistersConfig(**SIZES, use_swiglu_ffn=True, num_register_tokens=3), Dinov2WithRegistersModel),
}

for name, (config, model) in MODELS.items():
    torch.manual_seed(0)
    network = model(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))  # layer scales and biases are 1 and 0 at first
        images = torch.randn(2, 3, 16, 16)  # of other sides than the positions' grid
        pooled = network(images).pooler_output
    network.save_pretrained(HERE / name)
    np.savez(HERE / name / "io.npz", images=images.permute(0, 2, 3, 1).numpy(), pooled=pooled.numpy())
