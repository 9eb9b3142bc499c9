"""Which compiled extension is loaded, and what is said when it does not fit: `ard_fast/functional/_load.py`.

The cases that a user meets are played for real, in processes of their own, with a small checkout and a small
site-packages folder around the extension that is installed.
"""

import json
import pprint
import re
import runpy
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from ard_fast.functional import _load

ROOT = Path(__file__).resolve().parents[2]
source_fingerprint = runpy.run_path(str(ROOT / "build_backend" / "fingerprint.py"))["source_fingerprint"]

REPORT = """
import json, sys, warnings
sys.path[:0] = {path!r}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import ard_fast
extension = ard_fast.functional._load.load()
print(json.dumps([ard_fast.__file__, str(extension.c_path), extension.stale, [str(w.message) for w in caught]]))
"""


def make_checkout(root: Path) -> Path:
    """A source checkout with the package's loader and some sources."""
    for folder in ("core", "cuda"):
        (root / "csrc" / folder).mkdir(parents=True)
    (root / "csrc" / "core" / "one.h").write_text("// one\n")
    (root / "setup.py").touch()
    (root / "build_backend").mkdir()
    shutil.copy(ROOT / "build_backend" / "fingerprint.py", root / "build_backend")
    make_package(root / "ard_fast")
    return root


def make_package(folder: Path) -> Path:
    """The package's loader, without the rest."""
    (folder / "functional").mkdir(parents=True)
    (folder / "functional" / "__init__.py").touch()
    shutil.copy(ROOT / "ard_fast" / "functional" / "_load.py", folder / "functional")
    (folder / "__init__.py").write_text("from ard_fast.functional._load import load\n\nload()\n")
    return folder


def put_extension(folder: Path, built_from: str) -> None:
    """The extension that is installed here, as if built from sources with this fingerprint."""
    shutil.copy(_load.load().c_path, folder)
    info = {**_load.load().build_info, "SOURCE_FINGERPRINT": built_from}
    text = "".join(f"{key} = {pprint.pformat(value)}\n" for key, value in info.items())
    (folder / "_build_info.py").write_text(text)


def import_in(*path: Path) -> tuple[Path, Path, str | None, list[str]]:
    """Import the package with these folders in front of the search path: its file, its extension, stale, warnings."""
    code = REPORT.format(path=[str(folder) for folder in path])
    out = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=False, cwd=path[0])
    assert out.returncode == 0, out.stderr
    package, extension, stale, warned = json.loads(out.stdout.splitlines()[-1])
    return Path(package).parent, Path(extension).parent, stale, [text for text in warned if "ard_fast" in text]


def test_checkout_in_front_of_the_installed_package_takes_its_extension(tmp_path: Path) -> None:
    """After `pip install .`, started from the clone's own root; then the clone's sources change."""
    checkout, site = make_checkout(tmp_path / "clone"), make_package(tmp_path / "site" / "ard_fast")
    put_extension(site, source_fingerprint(checkout / "csrc"))
    assert import_in(checkout, site.parent) == (checkout / "ard_fast", site, None, [])

    (checkout / "csrc" / "core" / "one.h").write_text("// two\n")
    package, extension, stale, warned = import_in(checkout, site.parent)
    assert (package, extension) == (checkout / "ard_fast", site)
    assert str(site) in stale
    assert len(warned) == 1
    assert "built from other sources" in warned[0]
    assert f"`pip install .` (or `pip install -e .`) in {checkout}" in warned[0]


def test_of_several_extensions_the_one_that_fits_is_taken(tmp_path: Path) -> None:
    """An earlier `pip install -e .` left its extension in the clone, which a later `pip install .` does not replace."""
    checkout, site = make_checkout(tmp_path / "clone"), make_package(tmp_path / "site" / "ard_fast")
    put_extension(checkout / "ard_fast", "of an earlier build")
    put_extension(site, source_fingerprint(checkout / "csrc"))
    folders = _load._folders_with_extension(checkout / "ard_fast", [str(checkout), str(tmp_path), str(site.parent)])
    assert folders == [checkout / "ard_fast", site]
    chosen, _, stale = _load._choose_folder(folders, checkout / "csrc")
    assert (chosen, stale) == (site, None)
    put_extension(checkout / "ard_fast", source_fingerprint(checkout / "csrc"))
    assert _load._choose_folder(folders, checkout / "csrc")[0] == checkout / "ard_fast"
    # Without sources to check against, the package's own.
    assert _load._choose_folder(folders, None)[::2] == (checkout / "ard_fast", None)


def test_missing_extension_is_an_error_that_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = make_checkout(tmp_path / "clone")
    monkeypatch.setattr(_load, "PACKAGE", checkout / "ard_fast")
    monkeypatch.setattr(sys, "path", [str(checkout), str(tmp_path)])
    with pytest.raises(ImportError) as caught:
        _load.load.__wrapped__()
    assert f"run `pip install .` (or `pip install -e .`) in {checkout}" in str(caught.value)
    assert str(tmp_path) in str(caught.value).partition("Looked in")[2]


def test_broken_extension_is_an_error_that_names_both_torches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = make_package(tmp_path / "site" / "ard_fast")
    (package / "_C.abi3.so").write_bytes(b"not a library")
    (package / "_build_info.py").write_text("TORCH_VERSION = '2.98.0'\n")
    monkeypatch.setattr(_load, "PACKAGE", package)
    with pytest.raises(
        ImportError, match=r"(?s)could not be loaded.*against torch 2\.98\.0; this is torch .*--force-re"
    ):
        _load.load.__wrapped__()


def test_extension_with_cuda_kernels_needs_a_cuda_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is opened: the loader of the system would only miss libtorch_cuda.so."""
    package = make_package(tmp_path / "site" / "ard_fast")
    (package / "_C.abi3.so").touch()
    (package / "_build_info.py").write_text("TORCH_VERSION = '2.14.1+cu130'\nCUDA_BUILT = True\n")
    monkeypatch.setattr(_load, "PACKAGE", package)
    monkeypatch.setattr(torch.version, "cuda", None)
    said = r"holds CUDA kernels and needs a CUDA build of torch.*against torch 2\.14\.1\+cu130; this is .*--force-re"
    with pytest.raises(ImportError, match=said):
        _load.load.__wrapped__()


@pytest.mark.parametrize(
    ("archs", "said"),
    [
        (["sm_80", "sm_90"], []),
        (["sm_80", "compute_90"], []),
        (
            ["sm_80", "compute_80"],
            ["compiles the kernels from compute_80 at first use, without .* TORCH_CUDA_ARCH_LIST=9.0"],
        ),
        (["sm_80"], ["not covered: build again with TORCH_CUDA_ARCH_LIST=9.0"]),
    ],
)
def test_gpus_without_fitting_code_are_named_when_cuda_is_initialized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archs: list[str], said: list[str]
) -> None:
    """cuda:0 is an H100, cuda:1 an A100."""
    queued = []
    package = make_package(tmp_path / "site" / "ard_fast")
    (package / "_C.abi3.so").touch()
    (package / "_build_info.py").write_text(f"CUDA_BUILT = True\nCUDA_ARCHS = {archs!r}\n")
    monkeypatch.setattr(_load, "PACKAGE", package)
    monkeypatch.setattr(_load, "_import_extension", lambda path: None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda name, key: key == "CUDA")
    monkeypatch.setattr(torch.cuda, "_lazy_call", queued.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(9, 0), (8, 0)][index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: ["H100", "A100"][index])
    extension = _load.load.__wrapped__()
    assert (extension.has_cuda_kernels, extension.cuda_reason) == (True, f"compiled for {' '.join(archs)}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for call in queued:
            call()
    assert len(caught) == len(said)
    for warning, pattern in zip(caught, said, strict=True):
        assert re.search(r"ard_fast: cuda:0 \(H100\): .*" + pattern, str(warning.message))


def test_too_old_torch_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_load.torch, "__version__", "2.10.1+cu128")
    with pytest.raises(ImportError, match=r"needs torch 2\.11 or newer, got 2\.10\.1"):
        _load.load.__wrapped__()


def test_fingerprint_is_of_compiled_sources_only(tmp_path: Path) -> None:
    """Any edit, rename or new file among the compiled sources changes it; the emulator and notes do not."""
    csrc = make_checkout(tmp_path / "clone") / "csrc"
    seen = [source_fingerprint(csrc)]
    (csrc / "core" / "one.h").write_text("// one, edited\n")
    seen.append(source_fingerprint(csrc))
    (csrc / "core" / "one.h").rename(csrc / "core" / "two.h")
    seen.append(source_fingerprint(csrc))
    (csrc / "cuda" / "new.cuh").touch()
    seen.append(source_fingerprint(csrc))
    assert len(set(seen)) == 4
    (csrc / "emulator").mkdir()
    (csrc / "emulator" / "emulator.cpp").write_text("int x;\n")
    (csrc / "core" / "notes.md").write_text("notes\n")
    assert source_fingerprint(csrc) == seen[-1]
