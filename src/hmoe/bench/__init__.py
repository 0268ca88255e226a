"""What `hmoe bench` runs: all contenders in one process, interleaved, medians, and the machine's limits.

`python -m hmoe.bench.layer` and `python -m hmoe.bench.decode` need PyTorch only.
"""
