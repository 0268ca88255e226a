"""`hmoe info`: what is installed, and what this machine can do."""

import re
from typing import Any

from hmoe import __version__
from hmoe.cli.output import print_numbers


def print_info() -> None:
    """Print versions, CPU and GPU features, and installed extras."""
    import importlib.metadata
    import importlib.util
    import platform

    import torch

    from hmoe.kernels import native

    triton = importlib.util.find_spec("triton")
    numbers: dict[str, Any] = {"hmoe": __version__, "python": platform.python_version()}
    numbers |= {
        name: importlib.metadata.version(name) for name in ("torch", "numpy", "safetensors", "tokenizers")
    }
    numbers["cpu"] = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    numbers["cpu_bfloat16"] = (
        "hardware" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "emulated: use float32"
    )
    numbers["cpu_kernels"] = native.describe_library()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    numbers["gpu"] = ", ".join(gpus) or "none"
    numbers["triton"] = (
        importlib.metadata.version("triton") if triton else "not installed: used on NVIDIA GPUs"
    )
    numbers |= {f"extra [{extra}]": _describe_extra(extra) for extra in _list_extras("hmoe")}
    print_numbers(numbers, as_json=False)


def list_packages(extra: str) -> list[str]:
    """Return the packages that an extra of hmoe brings, those of the extras that it names included."""
    from importlib.metadata import requires

    names: dict[str, None] = {}  # a set that keeps its order
    for line in requires("hmoe") or []:
        requirement, _, condition = line.partition(";")
        if not re.search(f"extra == ['\"]{re.escape(extra)}['\"]", condition):
            continue
        name, _, rest = requirement.partition("[")
        own_extras = rest.partition("]")[0].split(",") if name.strip() == "hmoe" else []
        inner = [package for part in own_extras for package in list_packages(part.strip())]
        names |= dict.fromkeys(inner or re.findall(r"^[\w.-]+", requirement))
    return list(names)


def _list_extras(distribution: str) -> list[str]:
    """Return the extras as pyproject.toml names them; none where hmoe runs without having been installed."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        return metadata(distribution).get_all("Provides-Extra") or []
    except PackageNotFoundError:
        return []


def _describe_extra(extra: str) -> str:
    """Return `installed`, or what is missing and how to install it."""
    from importlib.metadata import PackageNotFoundError, version

    missing = []
    for name in list_packages(extra):
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    return f"missing {', '.join(missing)}: pip install 'hmoe[{extra}]'" if missing else "installed"
