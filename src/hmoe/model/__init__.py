"""The model on one device: no torch.distributed here. CONTRIBUTING.md has the legend of the letters in tensor names."""
