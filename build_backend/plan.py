"""What to build and how: the CUDA toolkit, the GPU architectures, the parallel jobs. Tested in tests/test_build.py."""

import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

NAMED_ARCHS = {
    "turing": "7.5+PTX",
    "ampere": "8.0;8.6+PTX",
    "ada": "8.9+PTX",
    "hopper": "9.0+PTX",
    "blackwell": "10.0;10.3;12.0;12.1+PTX",
}
# One nvcc process on one of our files peaks at well under this; the rest is room for everything else on the machine.
MEMORY_PER_JOB = 2 << 30


class BuildError(Exception):
    """The build cannot do what was asked for; the message says what was looked for and what to do."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit that can compile and link the CUDA module."""

    root: Path
    nvcc: Path
    include: Path
    cudart_static: Path
    version: tuple[int, int]
    archs: tuple[str, ...]  # what nvcc can compile for, such as ("75", "80", ...)


# --------------------------------------------------------------------------------------------------------------- Python


def check_python(config: Mapping[str, object]) -> None:
    """Refuse a free-threaded Python (`config` are sysconfig's variables) before anything is fetched or compiled."""
    if config.get("Py_GIL_DISABLED"):
        raise BuildError(
            "ard-fast is one build for every Python, through the stable ABI, which free-threaded CPython does not "
            "have; install it with the ordinary interpreter of the same version"
        )


# -------------------------------------------------------------------------------------------------------------- toolkit


def run_text(*command: str) -> str:
    """Run a command; its output and error text, or '' if it cannot be run: a probe must never stop a build."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def toolkit_root_of(nvcc: str, run: Callable[..., str] = run_text) -> list[Path]:
    """The folders that an `nvcc` found on PATH may belong to.

    It can be a wrapper script outside the toolkit, so the real one is asked first: `nvcc --dryrun` prints `TOP=`.
    """
    match = re.search(r"^#\$ TOP=(.+)$", run(nvcc, "--dryrun", "-x", "cu", "-c", os.devnull), re.MULTILINE)
    asked = [Path(os.path.normpath(match[1].strip()))] if match else []
    return [*asked, Path(nvcc).resolve().parent.parent]


def inspect_toolkit(root: Path, run: Callable[..., str] = run_text) -> Toolkit | str:
    """The toolkit at `root`, or what it lacks."""
    if not root.is_dir():
        return "no such folder"
    nvcc = root / "bin" / "nvcc"
    if not nvcc.is_file():
        return "no bin/nvcc"
    # A conda toolkit keeps headers and libraries under targets/<platform>.
    header = next(iter([*root.glob("include/cuda_runtime.h"), *root.glob("targets/*/include/cuda_runtime.h")]), None)
    if header is None:
        return "no include/cuda_runtime.h"
    places = ("lib64", "lib", "lib/*-linux-gnu", "targets/*/lib")
    cudart = next((path for place in places for path in root.glob(f"{place}/libcudart_static.a")), None)
    if cudart is None:
        return "no libcudart_static.a"
    version = re.search(r"release (\d+)\.(\d+)", run(str(nvcc), "--version"))
    if version is None:
        return "bin/nvcc --version tells no release"
    archs = tuple(re.findall(r"compute_(\d+)\b", run(str(nvcc), "--list-gpu-arch")))
    if not archs:
        return "bin/nvcc --list-gpu-arch lists nothing"
    return Toolkit(root, nvcc, header.parent, cudart, (int(version[1]), int(version[2])), archs)


def find_toolkit(
    env: Mapping[str, str],
    which: Callable[[str], str | None],
    run: Callable[..., str] = run_text,
    usual: Path = Path("/usr/local/cuda"),
) -> tuple[Toolkit | None, list[str]]:
    """Find a usable CUDA toolkit: $CUDA_HOME, $CUDA_PATH, the nvcc on PATH, the usual place.

    Returns:
        The toolkit or None, and a line for each place looked at that has none.
    """
    places = [(f"${name}", Path(env[name])) for name in ("CUDA_HOME", "CUDA_PATH") if env.get(name)]
    on_path = which("nvcc")
    if on_path is not None:
        places += [(f"nvcc on PATH ({on_path})", root) for root in toolkit_root_of(on_path, run)]
    places.append(("the usual place", usual))
    looked = [] if on_path else ["nvcc on PATH: not found"]
    seen = set()
    for name, root in places:
        if root in seen:
            continue
        seen.add(root)
        found = inspect_toolkit(root, run)
        if isinstance(found, Toolkit):
            return found, looked
        looked.append(f"{name}, {root}: {found}")
    return None, looked


# ---------------------------------------------------------------------------------------------------------- CUDA or not


def cuda_mode(env: Mapping[str, str]) -> str:
    """ARD_FAST_CUDA: `auto` (the default), `0` or `1`."""
    mode = env.get("ARD_FAST_CUDA", "").strip().lower() or "auto"
    if mode not in ("auto", "0", "1"):
        raise BuildError(f"ARD_FAST_CUDA: expected auto, 0 or 1, got {env['ARD_FAST_CUDA']!r}")
    return mode


def decide_cuda(
    mode: str, torch_version: str, torch_cuda: str | None, find: Callable[[], tuple[Toolkit | None, list[str]]]
) -> tuple[Toolkit | None, str]:
    """Whether to build the CUDA module.

    A visible GPU is no condition: containers and build machines have none.

    Args:
        mode: from `cuda_mode`.
        torch_version: of the torch to build against.
        torch_cuda: the CUDA version that torch was built with, or None.
        find: looks for a toolkit; not called when the answer is known without one.

    Returns:
        The toolkit to build with or None, and the reason, a sentence without a full stop.

    Raises:
        BuildError: `mode` is "1" and the module cannot be built.
    """
    if mode == "0":
        return None, "ARD_FAST_CUDA=0"

    def refuse(reason: str) -> tuple[None, str]:
        if mode == "1":
            raise BuildError(f"ARD_FAST_CUDA=1, but {reason}")
        return None, reason

    if torch_cuda is None:
        return refuse(f"torch {torch_version} is not a CUDA build")
    toolkit, looked = find()
    if toolkit is None:
        needed = "bin/nvcc, include/cuda_runtime.h and libcudart_static.a"
        return refuse(f"no CUDA toolkit with {needed} was found; looked at: {'; '.join(looked)}")
    if toolkit.version[0] != int(torch_cuda.split(".")[0]):
        have = ".".join(map(str, toolkit.version))
        return refuse(
            f"the CUDA toolkit in {toolkit.root} is {have} and torch {torch_version} was built with CUDA {torch_cuda}; "
            "the major versions must be the same"
        )
    return toolkit, f"torch {torch_version} has CUDA {torch_cuda}, toolkit {'.'.join(map(str, toolkit.version))}"


# -------------------------------------------------------------------------------------------------------- architectures


def arch_number(arch: str) -> int:
    """`"90a"` -> 90, `"120"` -> 120."""
    return int(re.match(r"\d+", arch)[0])


def parse_arch_list(text: str) -> list[tuple[str, bool]]:
    """Parse TORCH_CUDA_ARCH_LIST.

    Args:
        text: such as "8.0;9.0a+PTX" or "Ampere Hopper".

    Returns:
        (arch, also as PTX) pairs in ascending order, such as [("80", False), ("90a", True)].

    Raises:
        BuildError: an entry is neither a number nor a name that is known.
    """
    parsed: dict[str, bool] = {}
    for item in re.split(r"[;,\s]+", text.strip()):
        for part in NAMED_ARCHS.get(item.lower(), item).split(";"):
            match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", part, re.IGNORECASE)
            if match is None:
                known = ", ".join(name.capitalize() for name in NAMED_ARCHS)
                raise BuildError(
                    f"TORCH_CUDA_ARCH_LIST: expected entries like 8.0, 9.0a, 12.0+PTX or one of {known}; got {part!r}"
                )
            arch = f"{match[1]}{match[2]}{match[3].lower()}"
            parsed[arch] = parsed.get(arch, False) or match[4] is not None
    return sorted(parsed.items(), key=lambda item: (arch_number(item[0]), item[0]))


def requested_archs(env: Mapping[str, str]) -> str | None:
    """TORCH_CUDA_ARCH_LIST, or None where it leaves the choice to us."""
    text = env.get("TORCH_CUDA_ARCH_LIST", "").strip()
    return None if text.lower() in ("", "native") else text


def choose_archs(
    requested: str | None, gpus: Iterable[str], torch_archs: Iterable[str], nvcc_archs: Sequence[str]
) -> tuple[list[tuple[str, bool]], str]:
    """Choose the architectures to compile for.

    Args:
        requested: from `requested_archs`; followed as it is.
        gpus: architectures of the visible GPUs, such as "90".
        torch_archs: what torch itself was built for.
        nvcc_archs: what nvcc can compile for.

    Returns:
        (arch, also as PTX) pairs in ascending order, and where they came from.

    Raises:
        BuildError: an architecture that was asked for, or every visible GPU, is out of nvcc's reach.
    """
    supported = sorted({arch_number(arch) for arch in nvcc_archs})
    reach = f"this nvcc compiles for {', '.join(map(str, supported))}"
    if requested is not None:
        pairs = parse_arch_list(requested)
        missing = [arch for arch, _ in pairs if arch_number(arch) not in supported]
        if missing:
            raise BuildError(f"TORCH_CUDA_ARCH_LIST: {reach}; got {', '.join(missing)}")
        return pairs, "TORCH_CUDA_ARCH_LIST"
    visible = sorted({arch_number(arch) for arch in gpus})
    for wanted, source in (
        (visible, "the visible GPUs"),
        (sorted({arch_number(arch) for arch in torch_archs}), "what torch was built for"),
    ):
        if not wanted:
            continue
        chosen = [arch for arch in wanted if arch in supported]
        if not chosen and wanted[0] > supported[-1]:
            # A GPU newer than this nvcc runs the PTX of the newest architecture nvcc knows.
            chosen = [supported[-1]]
        if not chosen:
            raise BuildError(f"{reach}; none of {source} is among them: {', '.join(map(str, wanted))}")
        return [(str(arch), arch == chosen[-1]) for arch in chosen], source
    return [(str(arch), arch == supported[-1]) for arch in supported], "what nvcc supports"


def gencode_flags(archs: Iterable[tuple[str, bool]]) -> list[str]:
    """nvcc's flags for the chosen architectures."""
    flags = []
    for arch, ptx in archs:
        flags.append(f"-gencode=arch=compute_{arch},code=sm_{arch}")
        if ptx:
            flags.append(f"-gencode=arch=compute_{arch},code=compute_{arch}")
    return flags


# ------------------------------------------------------------------------------------------------------- compiler flags


def flags_from(env: Mapping[str, str], name: str) -> list[str]:
    """The flags in an environment variable such as CXXFLAGS, split as a shell does."""
    try:
        return shlex.split(env.get(name, ""))
    except ValueError as error:
        raise BuildError(f"{name}: expected flags as a shell takes them, got {env[name]!r} ({error})") from None


# ----------------------------------------------------------------------------------------------------------------- jobs


def choose_jobs(env: Mapping[str, str], cores: int, free_memory: int | None) -> int:
    """MAX_JOBS if it is set, else as many as cores and free memory (bytes, None if unknown) allow."""
    given = env.get("MAX_JOBS", "").strip()
    if given:
        if not given.isdigit() or int(given) < 1:
            raise BuildError(f"MAX_JOBS: expected a positive whole number, got {given!r}")
        return int(given)
    by_memory = cores if free_memory is None else free_memory // MEMORY_PER_JOB
    return max(1, min(cores, by_memory))


def nvcc_threads(jobs: int, cu_files: int, archs: int) -> int:
    """Threads inside one nvcc, which compiles one architecture each, so that all files together keep to `jobs`."""
    return max(1, min(archs, jobs // max(1, cu_files)))


def machine_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_free_memory() -> int | None:
    """Bytes of memory available now, or None where the system does not tell."""
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) << 10 if match else None


# ----------------------------------------------------------------------------------------------------------------- time


def build_time(env: Mapping[str, str]) -> float:
    """Seconds since 1970 to record as the time of the build: $SOURCE_DATE_EPOCH if it is set, else now."""
    given = env.get("SOURCE_DATE_EPOCH", "").strip()
    if not given:
        return time.time()
    if not given.isdigit():
        raise BuildError(f"SOURCE_DATE_EPOCH: expected whole seconds since 1970, got {given!r}")
    return float(given)
