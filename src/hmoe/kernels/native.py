"""The optional C++ library for bfloat16 on x86-64 (`cpp/`), called through ctypes.

`python -m hmoe.kernels.build` makes it in the cache folder; nothing is ever built at import. Its file name is
a hash of the sources and of this processor, so a library of another version or another machine is not used.
"""

import ctypes
import functools
import hashlib
import platform
import shutil
from pathlib import Path

import torch

from hmoe.errors import ConfigError
from hmoe.kernels.layer import Gradients, Layer, Saved
from hmoe.storage import get_cache_folder

SOURCES = Path(__file__).parent / "cpp"
NEEDED = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16")
COMPILERS = ("g++", "c++", "clang++")
FLAGS = ("-O3", "-std=c++17", "-march=native", "-fopenmp", "-shared", "-fPIC")
OUT_OF_MEMORY = 1  # what the library returns; 2: arguments that point outside of their tensors


class _Layer(ctypes.Structure):
    """The same fields in the same order as `Layer` of cpp/plan.hpp."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("tokens", "dim", "experts", "threads", "pairs", "units", "room")
        ),
        *(
            (name, ctypes.c_void_p)
            for name in ("token", "count", "width", "gate", "x", "w_gate", "w_up", "w_down")
        ),
        *((name, ctypes.c_void_p) for name in ("pre_gate", "pre_up", "order")),
    ]


def read_processor_features() -> set[str]:
    """Return the instruction sets of this processor, as Linux names them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def explain_obstacle() -> str | None:
    """Return why the library can do nothing for this machine, or None."""
    missing = [name for name in NEEDED if name not in read_processor_features()]
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return f"it is for Linux on x86-64, this is {platform.system()} on {platform.machine()}"
    return f"this processor lacks {', '.join(missing)}" if missing else None


def library_path() -> Path:
    """Return where the library of these sources and this processor lies once built."""
    sources = b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.?pp")))
    key = hashlib.sha256(
        sources + " ".join([*FLAGS, *sorted(read_processor_features())]).encode()
    ).hexdigest()[:16]
    return get_cache_folder() / f"kernels-{key}.so"


@functools.cache
def get_library() -> ctypes.CDLL | None:
    """Return the library, or None where it was not built; looked for once per process."""
    path = library_path()
    return load_library(path) if explain_obstacle() is None and path.exists() else None


def load_library(path: Path) -> ctypes.CDLL | None:
    """Load a built library; None if it is damaged, may not be executed, or gets no tile registers."""
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError:
        return None
    loaded.hmoe_instructions.restype = ctypes.c_char_p
    return None if loaded.hmoe_start() else loaded


def describe_library() -> str:
    """Describe in one line, for `hmoe info`, whether the library is there and what it would bring."""
    if explain_obstacle():
        return f"not for this machine: {explain_obstacle()}"
    loaded = get_library()
    if loaded is not None:
        return f"built ({loaded.hmoe_instructions().decode()})"
    compiler = "" if any(map(shutil.which, COMPILERS)) else f", which needs a C++ compiler ({COMPILERS[0]})"
    command = f"python -m hmoe.kernels.build{compiler}"
    return f"not built: bfloat16 layers were 1.5 to 3 times faster (docs/log.md) after {command}"


def can_use_library(x_TD: torch.Tensor) -> bool:
    """Return whether the library is there and computes tensors like x."""
    return x_TD.dtype == torch.bfloat16 and get_library() is not None


def _call(name: str, layer: Layer, saved: Saved, *outputs: torch.Tensor | None) -> None:
    """Call a function of the library; the arguments' order is that of `Layer` in cpp/plan.hpp."""
    # Bound to names, because a pointer does not keep its tensor alive until the call returns.
    gate_N, width_E = layer.gate_N.float(), torch.tensor(layer.widths, dtype=torch.int64, device="cpu")
    kept = len(saved.pre_gate) > 0
    pointers = (
        layer.token_N, layer.num_tokens_E, width_E, gate_N, layer.x_TD, layer.w_gate_FD, layer.w_up_FD, layer.w_down_FD,
        saved.pre_gate if kept else None, saved.pre_up if kept else None, saved.order_N,
    )  # fmt: skip
    num_tokens, dim = layer.x_TD.shape
    sizes = (num_tokens, dim, len(layer.widths), torch.get_num_threads())
    bounds = (len(layer.token_N), len(layer.w_gate_FD), len(saved.pre_gate))
    argument = _Layer(*sizes, *bounds, *map(_pointer, pointers))
    failure = getattr(get_library(), name)(ctypes.byref(argument), *map(_pointer, outputs))
    if failure == OUT_OF_MEMORY:
        raise MemoryError(f"{name}: no memory for {len(layer.token_N)} token-expert pairs")
    if failure:
        raise ConfigError(
            f"expert_ffn: token_N must be tokens from 0 to {num_tokens - 1}, and num_tokens_E sum to at most "
            f"{len(layer.token_N)} pairs with at most one pair of a token and an expert"
        )


def _pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def forward_native(layer: Layer, room: int) -> tuple[torch.Tensor, Saved]:
    """Compute a layer's output by the C++ library; arguments as in `layer.Backend`."""
    y_TD = torch.empty_like(layer.x_TD)
    saved = Saved(layer.x_TD.new_empty(room), layer.x_TD.new_empty(room), torch.empty_like(layer.token_N))
    _call("hmoe_forward", layer, saved, y_TD)
    return y_TD, saved


def backward_native(layer: Layer, saved: Saved, dy_TD: torch.Tensor, weights: bool) -> Gradients:
    """Compute a layer's gradients by the C++ library; arguments as in `layer.Backend`."""
    if not len(saved.pre_gate) and bool(layer.num_tokens_E.any()):
        raise ConfigError(
            "expert_ffn: room = 0 in the forward pass kept no pre-activations, a backward pass needs them"
        )
    # Zeros, since the library writes nothing beyond the counts; float32, the only type of gates that it
    # knows.
    dgate_N = torch.zeros_like(layer.gate_N, dtype=torch.float32)
    dx_TD = torch.empty_like(layer.x_TD)
    all_weights = (layer.w_gate_FD, layer.w_up_FD, layer.w_down_FD)
    dw = [w.new_empty(w.shape if weights else (0,)) for w in all_weights]
    _call("hmoe_backward", layer, saved, dy_TD, dgate_N, dx_TD, *(dw if weights else (None, None, None)))
    return Gradients(dx_TD, dgate_N.to(layer.gate_N.dtype), *dw)
