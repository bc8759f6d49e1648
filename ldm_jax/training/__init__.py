"""State and step, optimizer, sharding, checkpoints, metrics, and the one loop that both stages run through."""
