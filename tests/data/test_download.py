"""Downloads from a local server: what is published arrives whole or not at all."""

import gzip
import hashlib
import http.server
import io
import resource
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cifar_files import fake_cifar
from mnist_files import fake_mnist

from ard_fast.data import download, load_dataset
from ard_fast.data.download import DownloadError, Source
from ard_fast.data.official import IDX_FILES


class Server:
    """Serves `files` by name over HTTP; `cut` bytes of every body are held back, `asked` lists the requests."""

    def __init__(self):
        self.files, self.asked, self.cut = {}, [], 0
        served = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.rsplit("/", 1)[1]
                served.asked.append(name)
                if name not in served.files:
                    return self.send_error(404)
                body = served.files[name]
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) - served.cut])
                return None

            def log_message(self, *args):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def publish(self, name, body):
        self.files[name] = body
        return Source((self.url + name,), len(body), hashlib.sha256(body).hexdigest())

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    made = Server()
    yield made
    made.close()


def packed_tar(folder, extra=()):
    """The .tar.gz of a folder, with further (TarInfo, bytes) members before the folder's own."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as tar:
        for member, content in extra:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        tar.add(folder, arcname=folder.name)
    return file.getvalue()


@pytest.fixture
def cifar10(server, monkeypatch, tmp_path):
    """CIFAR-10 as the server publishes it; a function publishes other archives in its place."""
    fake_cifar(tmp_path / "source")
    folder = tmp_path / "source" / "cifar-10-batches-bin"

    def publish(body=None, **changes):
        source = server.publish("cifar-10-binary.tar.gz", packed_tar(folder) if body is None else body)
        source = Source(**{**vars(source), **changes})
        monkeypatch.setitem(download.CIFAR_ARCHIVES, "cifar10", source)
        return source

    publish.folder = folder
    publish()
    return publish


def load(data_dir, name="cifar10", **settings):
    return load_dataset(name, data_dir=data_dir, **{"val_size": 20, "download": True, **settings})


def names(folder):
    return sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []


# ---- What arrives -------------------------------------------------------------------------------------------------


def test_cifar10_arrives_once_and_is_the_same(server, cifar10, tmp_path):
    data = load(tmp_path / "data")
    there = load_dataset("cifar10", data_dir=tmp_path / "source", val_size=20)
    assert np.array_equal(data.train.images, there.train.images) and np.array_equal(data.test.labels, there.test.labels)
    assert names(tmp_path / "data") == [".ard_fast_download.lock", "cifar-10-batches-bin"]
    load(tmp_path / "data")
    load(tmp_path / "data" / "cifar-10-batches-bin")
    assert server.asked == ["cifar-10-binary.tar.gz"]
    assert len(load(tmp_path / "other" / "cifar-10-batches-bin").test) == 40  # named before it is there


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")])
def test_idx_files_arrive_where_torchvision_has_them(server, monkeypatch, tmp_path, name, folder):
    content = fake_mnist(tmp_path / "source", packed=True)
    sources = [server.publish(f"{f}.gz", (tmp_path / "source" / f"{f}.gz").read_bytes()) for f in IDX_FILES]
    monkeypatch.setitem(download.IDX_SOURCES, name, sources)
    # Files right in the folder may be those of the other data set; what is in its own place is not fetched again.
    fake_mnist(tmp_path / "data", seed=1)
    (tmp_path / "data" / folder).mkdir(parents=True)
    plain = gzip.decompress(server.files[f"{IDX_FILES[1]}.gz"])
    (tmp_path / "data" / folder / IDX_FILES[1]).write_bytes(plain)
    data = load(tmp_path / "data", name)
    assert np.array_equal(data.test.images[:, 0], content[IDX_FILES[2]])
    assert server.asked == [f"{IDX_FILES[k]}.gz" for k in (0, 2, 3)]


def test_the_second_address_is_tried(server, cifar10, tmp_path):
    source = cifar10()
    cifar10(urls=(server.url + "gone/not-there.tar.gz", *source.urls))
    assert len(load(tmp_path / "data").test) == 40
    assert server.asked == ["not-there.tar.gz", "cifar-10-binary.tar.gz"]


def test_of_several_processes_one_downloads(server, cifar10, tmp_path):
    with ThreadPoolExecutor(4) as pool:  # the lock holds between file handles, so threads stand for processes
        loaded = list(pool.map(lambda _: load(tmp_path / "data"), range(4)))
    assert len(server.asked) == 1 and all(len(data.test) == 40 for data in loaded)


def test_nothing_is_downloaded_unasked(server, cifar10, tmp_path):
    with pytest.raises(FileNotFoundError, match="or let --download fetch it"):
        load(tmp_path / "data", download=False)
    with pytest.raises(FileNotFoundError, match="or let --download fetch them"):
        load(tmp_path / "data", "mnist", download=False)
    with pytest.raises(ValueError, match="download: only cifar10, cifar100, mnist, fashion-mnist can be downloaded"):
        load_dataset("digits", download=True)
    assert server.asked == [] and not (tmp_path / "data").exists()


def test_an_archive_put_there_by_hand_is_taken_if_it_is_the_published_one(server, cifar10, tmp_path):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "cifar-10-binary.tar.gz"
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"cifar-10-binary.tar.gz: not the published file \(sha256 "):
        load(tmp_path / "data")
    assert path.read_bytes() == b"mine"
    path.write_bytes(server.files["cifar-10-binary.tar.gz"])
    assert len(load(tmp_path / "data").test) == 40
    assert server.asked == [] and path.is_file()


# ---- What does not ------------------------------------------------------------------------------------------------


def test_without_a_network_it_is_reported_what_to_do(cifar10, tmp_path, server):
    server.close()
    expected = (
        rf"could not download cifar-10-binary\.tar\.gz \({server.url}cifar-10-binary\.tar\.gz: .*refused.*\)\. "
        rf"Where there is a network, .* put the file into {tmp_path / 'data'} and run again with --download"
    )
    with pytest.raises(DownloadError, match=expected):
        load(tmp_path / "data")
    assert names(tmp_path / "data") == [".ard_fast_download.lock"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda body: body[:-1] + b"x", r"not the published file \(sha256 "),
        (lambda body: body + b"x", "sent more than the [0-9]+ bytes of the published file"),
        (lambda body: body[:1000], "ended after 1000 of [0-9]+ bytes"),
        (lambda body: b"<html>Please log in</html>", "ended after 26 of"),
    ],
)
def test_what_is_not_the_published_file_is_not_kept(server, cifar10, tmp_path, spoil, message):
    server.files["cifar-10-binary.tar.gz"] = spoil(server.files["cifar-10-binary.tar.gz"])
    with pytest.raises(DownloadError, match=message):
        load(tmp_path / "data")
    assert names(tmp_path / "data") == [".ard_fast_download.lock"]


@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_leaves_nothing_half(server, cifar10, tmp_path, there):
    """While downloading, and while unpacking an archive that was put there."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "data").mkdir()
    if there:
        (tmp_path / "data" / "cifar-10-binary.tar.gz").write_bytes(server.files["cifar-10-binary.tar.gz"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"data/cifar-10-.*: File too large|File too large: .*data/cifar-10-"):
            load(tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path / "data") == [".ard_fast_download.lock", "cifar-10-binary.tar.gz"][: 1 + there]
    assert len(load(tmp_path / "data").test) == 40


def member(name, kind=tarfile.REGTYPE, link="/etc/passwd"):
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made, b"evil" if kind == tarfile.REGTYPE else b""


@pytest.mark.parametrize(
    ("strange", "message"),
    [
        (member("../evil.bin"), None),
        (member("cifar-10-batches-bin/../../evil.bin"), None),
        (member("cifar-10-batches-bin/evil.bin"), None),
        (member("evil", tarfile.SYMTYPE), None),
        (None, "test_batch.bin missing in it, or not as plain files"),
        (member("cifar-10-batches-bin/test_batch.bin", tarfile.SYMTYPE), "test_batch.bin missing in it"),
    ],
)
def test_nothing_but_the_wanted_files_is_unpacked(cifar10, tmp_path, strange, message):
    if message is not None:
        (cifar10.folder / "test_batch.bin").unlink()
    cifar10(packed_tar(cifar10.folder, [strange] if strange else []))
    part = tmp_path / "data" / ".cifar-10-batches-bin.part"  # a killed process left it
    part.mkdir(parents=True)
    (part / "data_batch_1.bin").write_bytes(b"half")
    if message is None:
        assert len(load(tmp_path / "data").test) == 40
        assert names(tmp_path / "data" / "cifar-10-batches-bin") == names(cifar10.folder)
    else:
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "data")
    assert not list(tmp_path.rglob("*evil*")) and not part.exists()


@pytest.mark.parametrize("share", [0, 0.3, 0.999])
def test_a_damaged_archive_is_reported(cifar10, tmp_path, server, share):
    whole = server.files["cifar-10-binary.tar.gz"]
    cifar10(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"cifar-10-binary\.tar\.gz: (not a whole \.tar\.gz file|.* missing in it)"):
        load(tmp_path / "data")
    assert "cifar-10-batches-bin" not in names(tmp_path / "data")
