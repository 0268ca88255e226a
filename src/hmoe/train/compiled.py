"""Blocks under torch.compile: one graph for each kind of block, and eager wherever shapes are not those of training."""

import contextlib
import warnings
from collections.abc import Iterator

import torch

from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.model.transformer import Transformer


def compile_blocks(model: Transformer, backend: str = "inductor") -> None:
    """Compile each block when it is first computed; layers of one kind share a graph, names and weights stay."""
    # The tracer looks at every input's .grad, inner ones too.
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
    for block in model.blocks:
        block.compile(backend=backend, dynamic=False)


@contextlib.contextmanager
def run_eagerly(config: RunConfig) -> Iterator[None]:
    """For validation and text samples: every new length of a text would be compiled anew."""
    if not config.train.compile:  # the next line imports the compiler
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextlib.contextmanager
def explain_failure(config: RunConfig) -> Iterator[None]:
    """Turn what the compiler raises into one line.

    Raises:
        ConfigError: if a block cannot be compiled here, such as without a C++ compiler.
    """
    try:
        yield
    except Exception as error:
        if not config.train.compile:
            raise
        from torch._dynamo.exc import TorchDynamoException  # noqa: PLC0415 - slow to import

        if not isinstance(error, TorchDynamoException):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"train.compile = true: a block cannot be compiled here ({reason}); nearest is false"
        ) from None
