"""The command `python -m ard_fast.info`: what is built, for what, which torch, and which code each operator will run.

Reads only: nothing is built, and no GPU is needed. Put its output into a bug report.
"""

import json
import platform
from collections.abc import Sequence
from typing import Any

import torch

from ard_fast._commandline import Parser
from ard_fast._version import __version__
from ard_fast.functional import _load


def _gpus(archs: list[str]) -> list[dict[str, Any]]:
    """The visible GPUs, and how the kernels fit each."""
    if not torch.cuda.is_available():
        return []
    gpus = []
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        runs, how = _load.arch_coverage(capability, archs)
        gpus.append(
            {
                "name": torch.cuda.get_device_name(index),
                "capability": "{}.{}".format(*capability),
                "kernels_run": runs,
                "how": how,
            }
        )
    return gpus


def _operators(extension: _load.Extension, level: str) -> dict[str, dict[str, str]]:
    """For each operator on tensors, what runs on each device and why."""
    names = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("ard_fast::"))
    table = {}
    for name in names:
        if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeExplicitAutograd"):
            continue  # tells about the build; takes no tensor
        on_cpu = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
        on_cuda = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
        no_cuda = "no CUDA kernel" if extension.has_cuda_kernels else "none"
        table[name.removeprefix("ard_fast::")] = {
            "cpu": f"compiled, {level}" if on_cpu else "none",
            "cuda": extension.cuda_reason if on_cuda else no_cuda,
        }
    return table


def collect() -> dict[str, Any]:
    """Everything that the report shows, as plain values that `json.dumps` takes."""
    extension = _load.load()
    build = dict(extension.build_info)
    level = torch.ops.ard_fast.simd_level()
    return {
        "version": __version__,
        "package": str(_load.PACKAGE),
        "source_checkout": extension.source_checkout,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "extension": str(extension.c_path),
        "cuda_kernels": extension.has_cuda_kernels,
        "cuda_reason": extension.cuda_reason,
        "stale": extension.stale,
        "build": build,
        "simd_level": level,
        "threads": torch.get_num_threads(),
        "gpus": _gpus(build.get("CUDA_ARCHS", []) if extension.has_cuda_kernels else []),
        "operators": _operators(extension, level),
    }


def render(report: dict[str, Any]) -> str:
    """The report as text for a person."""
    build = report["build"]
    cuda = f"CUDA {report['torch_cuda']}" if report["torch_cuda"] else "no CUDA"
    fits = "fits the sources beside it" if report["source_checkout"] else "installed with the package"
    rows = [
        ("ard-fast", f"{report['version']}, {report['package']}"),
        ("python", f"{report['python']}, {report['platform']}"),
        ("torch", f"{report['torch']}, {cuda}, {report['threads']} threads"),
        ("extension", report["extension"]),
        ("", f"STALE: {report['stale']}" if report["stale"] else fits),
    ]
    if build:
        rows.append(("built", f"{build['BUILT_AT']} against torch {build['TORCH_VERSION']}, {build['COMPILER']}"))
        rows.append(("", f"CUDA {'yes' if build['CUDA_BUILT'] else 'no'}: {build['CUDA_REASON']}"))
        if build["CUDA_BUILT"]:
            rows.append(("", f"{' '.join(build['CUDA_ARCHS'])}, from {build['CUDA_ARCHS_FROM']}"))
    rows.append(("CPU kernels", f"run as {report['simd_level']}"))
    rows.append(("CUDA kernels", f"{'loaded' if report['cuda_kernels'] else 'not loaded'}: {report['cuda_reason']}"))
    for gpu in report["gpus"]:
        how = gpu["how"] if report["cuda_kernels"] else "no CUDA kernels are loaded"
        rows.append(("", f"{gpu['name']} ({gpu['capability']}): {how}"))
    if report["torch_cuda"] and not report["gpus"]:
        rows.append(("", "no GPU is visible"))
    lines = [f"{name:<14}{text}" for name, text in rows]
    width = max(map(len, ["operator", *report["operators"]])) + 2
    lines += ["", f"{'operator':<{width}}on CPU tensors / on CUDA tensors"]
    lines += [f"{name:<{width}}{on['cpu']} / {on['cuda']}" for name, on in report["operators"].items()]
    return "\n".join(lines)


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(
        "info",
        description="Show what is installed: versions, GPUs, how the extension was built, and which code each operator "
        "runs on each device, and why. Put the output into a bug report.",
        epilog="Exit code 0, 1 if the extension is stale or does not cover a visible GPU, 2 wrong arguments.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; 0, or 1 if the extension is stale or a visible GPU is not covered."""
    flags = vars(make_parser().parse_args(argv))
    report = collect()
    print(json.dumps(report, indent=2) if "json" in flags else render(report))
    uncovered = report["cuda_kernels"] and any(not gpu["kernels_run"] for gpu in report["gpus"])
    return 1 if report["stale"] or uncovered else 0


if __name__ == "__main__":
    raise SystemExit(main())
