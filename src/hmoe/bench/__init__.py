"""What `hmoe bench` runs: everything measured side by side in one process, interleaved, medians, with the machine's limits.

`python -m hmoe.bench.layer` and `python -m hmoe.bench.decode` need PyTorch only.
"""
