"""The layers that are measured: the paper's sizes by name, or one of the user's own."""

from collections.abc import Sequence
from dataclasses import dataclass

import hmoe
from hmoe.errors import ConfigError


@dataclass(frozen=True)
class LayerShape:
    """A layer and its batch: model width, expert widths, experts per token, and tokens."""

    dim: int
    widths: tuple[int, ...]
    k: int
    tokens: int


SHAPES = {
    "0.4B": LayerShape(768, hmoe.arithmetic(12288, 8), 2, 4096),
    "small": LayerShape(256, hmoe.arithmetic(2048, 8, multiple=16), 2, 4096),
    "64-experts": LayerShape(768, hmoe.arithmetic(12288, 64, ratio=3, multiple=32), 8, 4096),
    "0.4B-long": LayerShape(768, hmoe.arithmetic(12288, 8), 2, 32768),
    "3B-long": LayerShape(1024, hmoe.arithmetic(32768, 8), 2, 32768),
    "64-experts-long": LayerShape(768, hmoe.arithmetic(12288, 64, ratio=3, multiple=32), 8, 32768),
}
ON = {"cpu": ("0.4B", "small", "64-experts"), "cuda": ("0.4B-long", "3B-long", "64-experts-long", "0.4B")}


def parse_own_shape(
    shapes: Sequence[str] | None, dim: int | None, widths: str | None, top_k: int | None, tokens: int | None
) -> Sequence[str] | dict[str, LayerShape] | None:
    """Return the names of shapes as they are, or the one shape that is described by its sizes, named `own`.

    Raises:
        ConfigError: for names and sizes together, some of the needed sizes only, or widths that are no
            numbers.
    """
    if not (dim or widths or top_k or tokens):
        return shapes
    if shapes or not (dim and widths):
        raise ConfigError(
            "a shape of your own needs `dim` and `widths`, may have `top_k` and `tokens`, and excludes `shape`",
            argument=("dim", "widths", "top_k", "tokens", "shape"),
        )
    try:
        sizes = tuple(int(width) for width in widths.split(","))
    except ValueError:
        raise ConfigError(
            f"widths = {widths}: must be numbers with commas, as in 864,1056", argument="widths"
        ) from None
    return {"own": LayerShape(dim, sizes, top_k or 2, tokens or 4096)}


def get_shape(name: str) -> LayerShape:
    """Return a shape by name, or raise ConfigError for an unknown one."""
    if name not in SHAPES:
        raise ConfigError(f"shape = {name}: must be one of {', '.join(SHAPES)}", argument="shape")
    return SHAPES[name]


def check_dtypes(dtypes: Sequence[str]) -> None:
    """Raise ConfigError for a dtype that is not measured."""
    for dtype in dtypes:
        if dtype not in ("bfloat16", "float16", "float32"):
            raise ConfigError(f"dtype = {dtype}: must be bfloat16, float16 or float32", argument="dtype")
