"""`hmoe info`: what is installed, and what this machine can do."""

import re
from typing import Any

from hmoe import __version__
from hmoe.cli.arguments import AsJson
from hmoe.cli.output import print_numbers
from hmoe.errors import make_install_command

_COLLECTIONS = ("all", "browser", "dev", "site")  # other extras and tools: no news where they are missing


def print_info(as_json: AsJson = False) -> None:
    """Show versions, extras, and what this machine can do."""
    numbers = _read_versions() | _describe_hardware()
    extras = {extra: _list_missing(extra) for extra in _list_extras("hmoe")}
    if as_json:
        described = {
            extra: {"missing": missing, "install": make_install_command(extra) if missing else None}
            for extra, missing in extras.items()
        }
        print_numbers(numbers | {"extras": described}, as_json)
        return
    for extra, missing in extras.items():
        if not missing:
            numbers[f"extra [{extra}]"] = "installed"
        elif extra not in _COLLECTIONS:
            numbers[f"extra [{extra}]"] = f"missing {', '.join(missing)}: {make_install_command(extra)}"
    print_numbers(numbers, as_json)


def _read_versions() -> dict[str, Any]:
    import platform
    from importlib.metadata import version
    from importlib.util import find_spec

    numbers = {"hmoe": __version__, "python": platform.python_version()}
    numbers |= {name: version(name) for name in ("torch", "numpy", "safetensors", "tokenizers")}
    triton = version("triton") if find_spec("triton") else "not installed: used on NVIDIA GPUs"
    return numbers | {"triton": triton}


def _describe_hardware() -> dict[str, Any]:
    import torch

    from hmoe.kernels import native

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return {
        "cpu": f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        "cpu_bfloat16": "hardware" if has_bfloat16 else "emulated: use float32",
        "cpu_kernels": native.describe_library(),
        "gpu": ", ".join(gpus) or "none",
    }


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


def _list_missing(extra: str) -> list[str]:
    """Return the packages of an extra that are not installed."""
    from importlib.metadata import PackageNotFoundError, version

    missing = []
    for name in list_packages(extra):
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    return missing
