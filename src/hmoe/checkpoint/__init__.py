"""What a training run keeps so that it can go on from there: state, manifest, and the store of checkpoints."""
