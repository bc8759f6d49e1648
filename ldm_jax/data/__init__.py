"""Where pictures come from: sources, transforms, the one pipeline, the tokenizer and the latent cache."""
