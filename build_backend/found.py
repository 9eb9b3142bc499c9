"""What the build finds on this machine: the installed torch, a CUDA toolkit, GPUs, Ninja."""

import os
import re
import runpy
import shutil
import site
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

MINIMUM_TORCH = (2, 11)
TORCH_REQUIREMENT = "torch>=2.11"
TOOLKIT = "cuda-toolkit[nvcc,cccl]"  # NVIDIA's package on PyPI
USUAL_TOOLKIT = Path("/usr/local/cuda")


class BuildError(Exception):
    """The build cannot do what was asked for; the message says what was looked for and what to do."""


@dataclass(frozen=True)
class Torch:
    """An installed torch: all that compiling and linking against its stable ABI needs."""

    root: Path  # the folder `torch`, with include/ and lib/ inside
    version: str  # such as "2.13.0+cpu"
    cuda: str | None  # the CUDA version it was built with, such as "13.0"; None for a CPU or ROCm build

    @property
    def release(self) -> tuple[int, ...]:
        """Major and minor version."""
        return tuple(int(part) for part in self.version.split(".")[:2])


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit that can compile and link the kernels."""

    nvcc: Path
    include: Path
    cudart_static: Path
    version: str  # such as "13.0"
    archs: list[int]  # what nvcc can compile for, such as [75, 80, 90], in ascending order


def run_text(*command: str | Path) -> str:
    """Run a command; its output and error text, or '' if it cannot be run: a probe must never stop a build."""
    try:
        return subprocess.run(command, stdout=-1, stderr=subprocess.STDOUT, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def package_folders() -> list[Path]:
    """Where packages lie: what this Python imports, then the site-packages of the environment that called pip.

    pip runs an isolated build with the interpreter of the calling environment and only masks its site-packages, so
    sysconfig still names them. `python -m build` makes a virtual environment of its own; the calling one is then
    known by VIRTUAL_ENV.
    """
    folders = [*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    if os.environ.get("VIRTUAL_ENV"):
        python = f"python{sys.version_info.major}.{sys.version_info.minor}"
        folders.append(os.path.join(os.environ["VIRTUAL_ENV"], "lib", python, "site-packages"))
    return [Path(folder) for folder in dict.fromkeys(folders) if os.path.isdir(folder)]


def find_torch() -> tuple[Torch | None, str]:
    """Find an installed torch that is new enough, without importing it: it or None, and where it was looked for."""
    folders, too_old = package_folders(), ""
    for folder in folders:
        if not (folder / "torch" / "version.py").is_file():
            continue
        values = runpy.run_path(str(folder / "torch" / "version.py"))  # plain assignments
        torch = Torch(folder / "torch", str(values["__version__"]), values.get("cuda"))
        if torch.release >= MINIMUM_TORCH:
            return torch, ""
        too_old = f"; torch {torch.version} in {folder} is too old"
    return None, f"looked in {', '.join(map(str, folders))}{too_old}"


def inspect_toolkit(root: Path, cuda: str) -> Toolkit | str:
    """The toolkit at `root` if it is whole and its major version that of `cuda`, or why not."""
    nvcc = root / "bin" / "nvcc"
    if not nvcc.is_file():
        return "no bin/nvcc"
    # A conda toolkit keeps headers and libraries under targets/<platform>.
    header = next((path for place in ("", "targets/*/") for path in root.glob(f"{place}include/cuda_runtime.h")), None)
    if header is None:
        return "no include/cuda_runtime.h"
    places = ("lib64", "lib", "lib/*-linux-gnu", "targets/*/lib")
    cudart = next((path for place in places for path in root.glob(f"{place}/libcudart_static.a")), None)
    if cudart is None:
        return "no libcudart_static.a"
    version = re.search(r"release (\d+\.\d+)", run_text(nvcc, "--version"))
    archs = sorted({int(arch) for arch in re.findall(r"compute_(\d+)\b", run_text(nvcc, "--list-gpu-arch"))})
    if version is None or not archs:
        return "bin/nvcc does not tell its release and architectures"
    if version[1].split(".")[0] != cuda.split(".")[0]:
        return f"its version is {version[1]}, torch was built with {cuda}: the major versions must be the same"
    return Toolkit(nvcc, header.parent, cudart, version[1], archs)


def find_toolkit(cuda: str) -> tuple[Toolkit | None, str]:
    """Find a toolkit for a torch built with CUDA `cuda`: it or None, and what is missing where.

    In this order: $CUDA_HOME, $CUDA_PATH, the nvcc on PATH, NVIDIA's packages from PyPI, the usual place.
    """
    places = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    if nvcc := shutil.which("nvcc"):
        # It can be a link or a script outside the toolkit, so it is asked: --dryrun prints TOP=.
        top = re.search(r"^#\$ TOP=(.+)$", run_text(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull), re.MULTILINE)
        places += [Path(os.path.normpath(top[1].strip()))] if top else []
    from_pypi = (folder / "nvidia" / f"cu{cuda.split('.')[0]}" for folder in package_folders())
    places += [*filter(Path.is_dir, from_pypi), USUAL_TOOLKIT]
    looked = []
    for root in dict.fromkeys(places):
        found = inspect_toolkit(root, cuda)
        if isinstance(found, Toolkit):
            return found, ""
        looked.append(f"{root}: {found}")
    return None, "; ".join(looked if nvcc else ["no nvcc on PATH", *looked])


def cuda_mode() -> str:
    """ARD_FAST_CUDA: `auto` (the default), `0` or `1`."""
    mode = os.environ.get("ARD_FAST_CUDA", "").strip().lower() or "auto"
    if mode not in ("auto", "0", "1"):
        raise BuildError(f"ARD_FAST_CUDA: expected auto, 0 or 1, got {os.environ['ARD_FAST_CUDA']!r}")
    return mode


def toolkit_requirement(torch: Torch) -> str | None:
    """NVIDIA's package of the toolkit for this torch, where PyPI has one in the form that `find_toolkit` knows."""
    major, _, rest = (torch.cuda or "0").partition(".")
    if sys.platform != "linux" or int(major) < 13:
        return None
    return f"{TOOLKIT}=={major}.{rest.partition('.')[0]}.*"


def decide_cuda(torch: Torch) -> tuple[Toolkit | None, str]:
    """The toolkit to build the CUDA kernels with, or None; and why, a sentence without a full stop.

    A visible GPU is no condition: containers and build machines have none.
    """
    if cuda_mode() == "0":
        return None, "ARD_FAST_CUDA=0"
    if torch.cuda is None:
        reason = f"torch {torch.version} is not a CUDA build"
    else:
        toolkit, looked = find_toolkit(torch.cuda)
        if toolkit is not None:
            return toolkit, f"torch {torch.version} has CUDA {torch.cuda}, toolkit {toolkit.version}"
        reason = f"no CUDA toolkit that fits torch {torch.version} was found ({looked})"
        if package := toolkit_requirement(torch):
            reason += f'; PyPI has one: pip install "{package}"'
    if cuda_mode() == "1":
        raise BuildError(f"ARD_FAST_CUDA=1, but {reason}")
    return None, reason


def visible_gpus() -> list[int]:
    """Architectures of this machine's GPUs, such as [80, 90]."""
    capabilities = run_text("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    return sorted({int(major + minor) for major, minor in re.findall(r"^(\d+)\.(\d)$", capabilities, re.MULTILINE)})


def choose_archs(gpus: list[int], known: list[int]) -> tuple[list[str], str]:
    """What to compile for, as nvcc names it, and why.

    Args:
        gpus: architectures of the visible GPUs.
        known: what nvcc can compile for.
    """
    requested = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if requested:
        names = []
        for entry in re.split(r"[;,\s]+", requested):
            match = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", entry)
            if match is None:
                raise BuildError(f"TORCH_CUDA_ARCH_LIST: expected entries like 8.0, 9.0a or 12.0+PTX, got {entry!r}")
            names += [f"sm_{match[1]}{match[2]}", *([f"compute_{match[1]}{match[2]}"] if match[3] else [])]
        return list(dict.fromkeys(names)), "TORCH_CUDA_ARCH_LIST"
    chosen, source = [arch for arch in gpus if arch in known], "the visible GPUs"
    if not chosen and gpus and gpus[0] > known[-1]:
        chosen = known[-1:]  # a newer GPU runs the PTX of the newest architecture that nvcc knows
    if not chosen:  # code for 8.0 runs on every 8.x
        chosen = sorted({arch // 10: arch for arch in reversed(known)}.values())
        source = "the generations of GPUs that nvcc knows"
    return [*(f"sm_{arch}" for arch in chosen), f"compute_{chosen[-1]}"], source


def find_ninja() -> str:
    """The ninja program: the one beside this Python, else the one on PATH."""
    ninja = shutil.which("ninja", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))
    if ninja is None:
        raise BuildError(
            "ninja was not found. With --no-build-isolation, install what the build needs first: "
            "pip install 'setuptools>=77.0.3,<82' ninja"
        )
    return ninja


def default_jobs() -> int:
    """As many as cores and memory allow: one compile takes less than 2 GB."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 31))
