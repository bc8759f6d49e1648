"""What a checkpoint says about itself, as the sub-dicts of our configs: network, first_stage, conditioner, diffusion,
latents. A description holds only those of its parts that the checkpoint has.
"""
