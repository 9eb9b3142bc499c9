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
from cifar_files import fake_cifar, fake_cifar100
from mnist_files import fake_mnist

from ard_fast.data import load_dataset, mnist, official
from ard_fast.data.download import DownloadError, Source


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
        monkeypatch.setitem(official.CIFAR_ARCHIVES, "cifar10", source)
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


def test_the_layout_folder_may_be_named_before_it_is_there(cifar10, tmp_path):
    assert len(load(tmp_path / "data" / "cifar-10-batches-bin").test) == 40
    assert "cifar-10-batches-bin" in names(tmp_path / "data")


def test_cifar100_arrives(server, monkeypatch, tmp_path):
    fake_cifar100(tmp_path / "source")
    body = packed_tar(tmp_path / "source" / "cifar-100-binary")
    source = server.publish("cifar-100-binary.tar.gz", body)
    monkeypatch.setitem(official.CIFAR_ARCHIVES, "cifar100", source)
    assert len(load(tmp_path / "data", "cifar100", val_size=100).train) == 100


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")])
def test_idx_files_arrive_where_torchvision_has_them(server, monkeypatch, tmp_path, name, folder):
    content = fake_mnist(tmp_path / "source", packed=True)
    sources = [server.publish(f"{f}.gz", (tmp_path / "source" / f"{f}.gz").read_bytes()) for f in mnist.FILES]
    monkeypatch.setitem(official.IDX_FILES, name, sources)
    # Files right in the folder may be those of the other data set; what is in its own place is not fetched again.
    fake_mnist(tmp_path / "data", seed=1)
    (tmp_path / "data" / folder).mkdir(parents=True)
    plain = gzip.decompress(server.files[f"{mnist.FILES[1]}.gz"])
    (tmp_path / "data" / folder / mnist.FILES[1]).write_bytes(plain)
    data = load(tmp_path / "data", name)
    assert np.array_equal(data.test.images[:, 0], content[mnist.FILES[2]])
    assert server.asked == [f"{mnist.FILES[k]}.gz" for k in (0, 2, 3)]


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


def test_the_archive_put_there_by_hand_is_taken_and_kept(server, cifar10, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cifar-10-binary.tar.gz").write_bytes(server.files["cifar-10-binary.tar.gz"])
    assert len(load(tmp_path / "data").test) == 40
    assert server.asked == [] and "cifar-10-binary.tar.gz" in names(tmp_path / "data")


def test_another_file_of_that_name_is_left_alone(server, cifar10, tmp_path):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "cifar-10-binary.tar.gz"
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"cifar-10-binary.tar.gz: not the published file \(sha256 "):
        load(tmp_path / "data")
    assert path.read_bytes() == b"mine" and server.asked == []


def test_the_published_sources_are_whole():
    sources = [*official.CIFAR_ARCHIVES.values(), *official.IDX_FILES["mnist"], *official.IDX_FILES["fashion-mnist"]]
    assert len(sources) == len({source.sha256 for source in sources}) == 10
    for source in sources:
        assert len(source.sha256) == 64 and int(source.sha256, 16) and source.size > 4000
        assert {url.rsplit("/", 1)[1] for url in source.urls} == {source.name}


# ---- What does not ------------------------------------------------------------------------------------------------


def test_without_a_network_it_is_said_what_to_do(cifar10, tmp_path, server):
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
        (lambda body: b"", "ended after 0 of"),
        (lambda body: b"<html>Please log in</html>", "ended after 26 of"),
    ],
)
def test_what_is_not_the_published_file_is_not_kept(server, cifar10, tmp_path, spoil, message):
    server.files["cifar-10-binary.tar.gz"] = spoil(server.files["cifar-10-binary.tar.gz"])
    with pytest.raises(DownloadError, match=message):
        load(tmp_path / "data")
    assert names(tmp_path / "data") == [".ard_fast_download.lock"]


@pytest.mark.parametrize("cut", [1, 1000, 300_000])
def test_a_connection_cut_short_leaves_nothing(server, cifar10, tmp_path, cut):
    server.cut = cut
    with pytest.raises(DownloadError, match=r"could not download .*(ended after|IncompleteRead)"):
        load(tmp_path / "data")
    assert names(tmp_path / "data") == [".ard_fast_download.lock"]
    server.cut = 0
    assert len(load(tmp_path / "data").test) == 40


@pytest.mark.parametrize("room", [0, 100_000, 1 << 19])
def test_a_full_disk_leaves_nothing_half(cifar10, tmp_path, room):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "data").mkdir()
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*data/\.cifar-10-.*\.part"):
            load(tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path / "data") == [".ard_fast_download.lock"]
    assert len(load(tmp_path / "data").test) == 40


def test_a_full_disk_while_unpacking_leaves_nothing_half(cifar10, tmp_path, server):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cifar-10-binary.tar.gz").write_bytes(server.files["cifar-10-binary.tar.gz"])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*data/\.cifar-10-.*\.part"):
            load(tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path / "data") == [".ard_fast_download.lock", "cifar-10-binary.tar.gz"]


def test_what_a_killed_process_left_is_not_taken(cifar10, tmp_path):
    part = tmp_path / "data" / ".cifar-10-batches-bin.part"
    part.mkdir(parents=True)
    (part / "data_batch_1.bin").write_bytes(b"half")
    (tmp_path / "data" / ".cifar-10-binary.tar.gz.part").write_bytes(b"half")
    assert len(load(tmp_path / "data").test) == 40
    assert names(tmp_path / "data") == [".ard_fast_download.lock", "cifar-10-batches-bin"]


# ---- Hostile archives, as if the checksum were theirs -------------------------------------------------------------


def link(name, target, kind=tarfile.SYMTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


def plain(name, content=b"hostile"):
    return tarfile.TarInfo(name), content


@pytest.mark.parametrize(
    "members",
    [
        [plain("../escaped")],
        [plain("cifar-10-batches-bin/../../escaped")],
        [plain("{root}/escaped")],
        [link("cifar-10-batches-bin", "{root}"), plain("cifar-10-batches-bin/escaped")],
        [link("cifar-10-batches-bin/out", ".."), plain("cifar-10-batches-bin/out/escaped")],
        [link("cifar-10-batches-bin/out", "../escaped", tarfile.LNKTYPE)],
        [link("cifar-10-batches-bin/device", "", tarfile.CHRTYPE)],
        [link("cifar-10-batches-bin/pipe", "", tarfile.FIFOTYPE)],
    ],
    ids=range(8),
)
def test_members_that_would_go_elsewhere_are_not_unpacked(cifar10, tmp_path, members):
    for member, _ in members:
        member.name = member.name.format(root=tmp_path)
        member.linkname = member.linkname.format(root=tmp_path)
    cifar10(packed_tar(cifar10.folder, members))
    assert len(load(tmp_path / "data").test) == 40
    assert names(tmp_path / "data" / "cifar-10-batches-bin") == names(cifar10.folder)
    assert names(tmp_path) == ["data", "source"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_link_in_place_of_a_file_is_refused(cifar10, tmp_path, kind):
    (cifar10.folder / "test_batch.bin").unlink()
    cifar10(packed_tar(cifar10.folder, [link("cifar-10-batches-bin/test_batch.bin", "/etc/passwd", kind)]))
    with pytest.raises(ValueError, match=r"test_batch\.bin missing in it, or not as plain files"):
        load(tmp_path / "data")
    assert "cifar-10-batches-bin" not in names(tmp_path / "data")


def test_a_file_that_is_twice_in_the_archive_is_refused(cifar10, tmp_path):
    cifar10(packed_tar(cifar10.folder, [plain("cifar-10-batches-bin/test_batch.bin")]))
    with pytest.raises(ValueError, match=r"test_batch\.bin is in it twice"):
        load(tmp_path / "data")


@pytest.mark.parametrize("share", [0, 3, 12, 0.001, 0.3, 0.9, 0.999])
def test_a_damaged_archive_is_said(cifar10, tmp_path, server, share):
    body = server.files["cifar-10-binary.tar.gz"]
    cifar10(body[: int(len(body) * share) if share < 1 else share])
    with pytest.raises(ValueError, match=r"cifar-10-binary\.tar\.gz: (not a whole \.tar\.gz file|.* missing in it)"):
        load(tmp_path / "data")
    assert "cifar-10-batches-bin" not in names(tmp_path / "data")
