"""What a training run keeps so that it can go on from there: files, the manifest that binds them, capture and restore."""
