"""Blocks under torch.compile: one graph for each kind of block, eager where shapes are not training's."""

import contextlib
import warnings
from collections.abc import Iterator

import torch

from hmoe.config.run import RunConfig
from hmoe.errors import ConfigError
from hmoe.model.transformer import Transformer


def compile_blocks(model: Transformer, backend: str = "inductor") -> None:
    """Compile each block when it is first computed; layers of one kind share a graph, names stay."""
    # The tracer looks at every input's .grad, inner ones too.
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
    # Blocks and not the whole model: equal blocks are compiled once, and checkpointing stays between them.
    for block in model.blocks:
        block.compile(backend=backend, dynamic=False)


@contextlib.contextmanager
def run_eagerly(config: RunConfig) -> Iterator[None]:
    """Compute compiled blocks eagerly for a while: every new length of a text would be compiled anew."""
    if not config.train.compile:  # the next line imports the compiler
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextlib.contextmanager
def explain_failure(config: RunConfig) -> Iterator[None]:
    """Raise what the compiler raises as one line that names the key.

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
