"""State and step, optimizer, sharding, checkpoints, metrics, and the one loop that both stages run through.

    program        Program: what a stage trains, as functions and shapes
    state          TrainState, make_train_step
    optimizer      optax's transformations by name, with warm-up, decay and clipping
    ema            averages whose width is chosen after training
    sharding       meshes of data, fsdp and tensor axes, and the compiled step on one
    distributed    several processes as one run
    checkpoint     Checkpoints: asynchronous, atomic, with checksums
    bucket         working directories in buckets
    loop           train: the loop, from batches to stops
"""
