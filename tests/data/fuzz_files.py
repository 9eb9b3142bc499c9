"""What the fuzz tests of file readers share: damaged contents, and a fence around the reader.

A reader may accept a file or raise one of its documented exceptions, which names the file. It may not crash, raise
anything else, ask for much memory, start a program, open a connection or write outside of its folder.
"""

import json
import os
import resource
import sys
import tempfile
import threading
import time
from contextlib import contextmanager

import hypothesis_profiles  # noqa: F401
from hypothesis import strategies as st

_ROOM = 1 << 29  # bytes beyond what the process has already: no file here has more than some hundred thousand
_SECONDS = 60.0  # of this thread's own work, of which nothing here takes one: a file must not make a reader spin
_NEVER = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "subprocess.Popen", "pty.spawn",
          "socket.connect", "socket.bind", "webbrowser.open", "ctypes.dlopen", "os.chmod", "os.symlink")  # fmt: skip

_watching = threading.local()


def _audit(event, arguments):
    seen = getattr(_watching, "seen", None)
    if seen is None:
        return
    if event in _NEVER:
        seen.append((event, arguments))
    elif event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        inside = os.path.realpath(arguments[0]).startswith(os.path.realpath(tempfile.gettempdir()) + os.sep)
        if not inside and arguments[0] != os.devnull:
            seen.append((event, arguments))


sys.addaudithook(_audit)


@contextmanager
def fence(room):
    """Run the body with that many more bytes of memory, watched and timed."""
    with open("/proc/self/status") as status:
        used = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData:"))
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    _watching.seen, start = [], time.thread_time()
    resource.setrlimit(resource.RLIMIT_DATA, (used + room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)
        seen, _watching.seen = _watching.seen, None
    assert not seen, f"the reader did what no file may make it do: {seen}"
    assert time.thread_time() - start < _SECONDS, "the reader took too long"


def read(reader, *names, errors=(ValueError,), room=_ROOM):
    """What `reader()` returns, or the exception that it raised, which must be among `errors` and say each of the names.

    Returns:
        (result, None) or (None, exception).
    """
    with fence(room):
        try:
            return reader(), None
        except errors as error:
            refusal = error
    for name in names:
        assert str(name) in str(refusal), f"{refusal!r} does not say {name}"
    link = refusal
    while link is not None:
        assert not isinstance(link, MemoryError) and "allocate" not in str(link), f"asked for much memory: {link!r}"
        link = link.__cause__ or link.__context__
    return None, refusal


_BIG = [value.to_bytes(4, order) for value in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x10000000)
        for order in ("little", "big")]  # fmt: skip


@st.composite
def damaged(draw, *contents):
    """Bytes: any, or one of the contents with some of it cut, flipped, overwritten, repeated or put in."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=300))
    content = bytearray(draw(st.sampled_from(contents)))
    # Heads and tails are where formats keep their structure.
    places = st.one_of(st.integers(0, min(len(content), 200)), st.integers(0, len(content)),
                       st.integers(max(0, len(content) - 200), len(content)))  # fmt: skip
    for _ in range(draw(st.integers(1, 3))):
        how, at = (
            draw(st.sampled_from(("cut", "flip", "flip", "number", "write", "repeat", "drop", "put"))),
            draw(places),
        )
        at = min(at, len(content))
        size = draw(st.integers(1, 40))
        if how == "cut":
            del content[at:]
        elif how == "flip" and at < len(content):
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "number":
            content[at : at + 4] = draw(st.sampled_from(_BIG))
        elif how == "write":
            content[at : at + size] = draw(st.binary(min_size=1, max_size=40))
        elif how == "repeat":
            content[at:at] = content[max(0, at - size) : at]
        elif how == "drop":
            del content[at : at + size]
        elif how == "put":
            content[at:at] = draw(st.binary(min_size=1, max_size=40))
    return bytes(content)


# Any value that JSON or YAML can hold, odd numbers among them.
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.sampled_from((10**400, -(2**63), 2**64, 0.5, -0.0, 1e308, -1.0)),
    st.floats(), st.text(max_size=8), st.sampled_from(("", "digits", "nan", "8/255", "../..", "/", "\0", "1e999")),
)  # fmt: skip
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@st.composite
def altered(draw, tree):
    """A tree of dicts and lists with one to three of its values replaced, added or left out."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(1, 3))):
        holder = tree
        while True:
            keys = list(range(len(holder))) if isinstance(holder, list) else list(holder)
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(holder[key], (dict, list)) and holder[key] and draw(st.booleans()):
                holder = holder[key]
                continue
            how = draw(st.sampled_from(("replace", "replace", "drop", "add")))
            if how == "replace":
                holder[key] = draw(trees)
            elif how == "drop":
                del holder[key]
            elif isinstance(holder, dict):
                holder[draw(st.text(max_size=5))] = draw(trees)
            break
    return tree
