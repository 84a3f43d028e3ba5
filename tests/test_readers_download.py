"""Downloads from a real server on loopback: whole, broken, resumed, wrong, and archives that mean harm."""

import dataclasses
import hashlib
import http.server
import io
import os
import shutil
import socket
import tarfile
import threading

import pytest

import data
import trees
from readers import download, published


class Server(http.server.ThreadingHTTPServer):
    """Serves bytes, in parts where they are asked for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.files = {}           # path: bytes
        self.ranges = []          # where each request wanted to start
        self.breaks = []          # a reply stops after that many bytes, once for each entry
        self.knows_ranges = True  # if not: all of a file, wherever it was to start


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        content = server.files.get(self.path[1:])
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        server.ranges.append(start)
        if content is None:
            return self.send_error(404)
        if not server.knows_ranges:
            start = 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if server.knows_ranges else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if server.knows_ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        reply = content[start:]
        if server.breaks:
            reply = reply[:server.breaks.pop(0)]
        self.wfile.write(reply)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


BODY = os.urandom(300_000)
MD5 = hashlib.md5(BODY).hexdigest()


def test_whole_file_and_progress_is_not_in_the_way(server, tmp_path):
    server.files["a.bin"] = BODY
    download.fetch(server.url + "a.bin", tmp_path / "a.bin", MD5)
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert [f.name for f in tmp_path.iterdir()] == ["a.bin"]
    download.fetch(server.url + "a.bin", tmp_path / "a.bin", MD5)
    assert server.ranges == [0]  # there already: nobody was asked


def test_a_broken_transfer_goes_on_where_it_stopped(server, tmp_path):
    server.files["a.bin"] = BODY
    server.breaks = [100_000, 50_000]
    for kept in (100_000, 150_000):
        with pytest.raises(OSError, match=f"broke off at {kept} of 300000 bytes; run it again to go on") as e:
            download.fetch(server.url + "a.bin", tmp_path / "a.bin", MD5)
        assert "\n" not in str(e.value)
        assert (tmp_path / "a.bin.part").read_bytes() == BODY[:kept]
        assert not (tmp_path / "a.bin").exists()
    download.fetch(server.url + "a.bin", tmp_path / "a.bin", MD5)
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert server.ranges == [0, 100_000, 150_000]
    assert not (tmp_path / "a.bin.part").exists()


def test_a_server_that_ignores_ranges_starts_over(server, tmp_path):
    server.files["a.bin"] = BODY
    server.breaks = [100_000]
    server.knows_ranges = False
    with pytest.raises(OSError, match="broke off"):
        download.fetch(server.url + "a.bin", tmp_path / "a.bin", MD5)
    download.fetch(server.url + "a.bin", tmp_path / "a.bin", MD5)
    assert server.ranges == [0, 100_000]
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_without_an_md5_a_file_is_fetched_from_its_start(server, tmp_path):
    """Nothing would tell a whole from two halves of different files."""
    server.files["a.bin"] = BODY
    server.breaks = [100_000]
    with pytest.raises(OSError, match="broke off"):
        download.fetch(server.url + "a.bin", tmp_path / "a.bin")
    download.fetch(server.url + "a.bin", tmp_path / "a.bin")
    assert server.ranges == [0, 0]
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_stopped_between_the_last_byte_and_the_rename(server, tmp_path):
    server.files["a.bin"] = BODY
    (tmp_path / "a.bin.part").write_bytes(BODY)
    download.fetch(server.url + "a.bin", tmp_path / "a.bin", MD5)
    assert (tmp_path / "a.bin").read_bytes() == BODY

    (tmp_path / "b.bin.part").write_bytes(BODY + b"more than there is")
    server.files["b.bin"] = BODY
    with pytest.raises(OSError, match="the MD5 is .*: dropped"):
        download.fetch(server.url + "b.bin", tmp_path / "b.bin", MD5)
    download.fetch(server.url + "b.bin", tmp_path / "b.bin", MD5)
    assert (tmp_path / "b.bin").read_bytes() == BODY


def test_a_wrong_md5_leaves_nothing_that_looks_good(server, tmp_path):
    server.files["a.bin"] = b"<html>moved</html>"
    with pytest.raises(OSError, match=f"the MD5 is .*, not {MD5}") as e:
        download.fetch(server.url + "a.bin", tmp_path / "a.bin", MD5)
    assert "\n" not in str(e.value)
    assert not list(tmp_path.iterdir())


def test_an_empty_file_of_which_no_range_can_be_asked(server, tmp_path):
    """416 says that nothing lies behind the bytes already there; without any it is an error like others."""
    def refuse(handler):
        handler.send_response(416)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.RequestHandlerClass = type("Refusing", (Handler,), {"do_GET": refuse})
    with pytest.raises(OSError, match="416.*run it again to go on"):
        download.fetch(server.url + "a.bin", tmp_path / "a.bin", MD5)
    assert not list(tmp_path.iterdir())


def test_no_such_file_and_no_server(server, tmp_path):
    with pytest.raises(OSError, match="404"):
        download.fetch(server.url + "none.bin", tmp_path / "a.bin")
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match="refused") as e:
            download.fetch(f"http://127.0.0.1:{taken.getsockname()[1]}/a.bin", tmp_path / "a.bin")
    assert "\n" not in str(e.value)


def packed(*members) -> bytes:
    """A .tgz of (name, bytes) files and of ready TarInfo."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


def test_a_set_is_fetched_unpacked_and_read_and_then_left_alone(server, tmp_path, monkeypatch, capsys):
    folder = trees.pets(tmp_path / "made")
    for part in ("images", "annotations"):
        members = []
        for file in sorted((folder / part).rglob("*")):
            if file.is_file():
                members.append((file.relative_to(folder).as_posix(), file.read_bytes()))
        server.files[f"{part}.tar.gz"] = packed(*members)
    files = {name: hashlib.md5(content).hexdigest() for name, content in server.files.items()}
    served = dataclasses.replace(published.SETS["pets"], url=server.url, files=files)
    monkeypatch.setitem(published.SETS, "pets", served)

    server.breaks = [400]
    with pytest.raises(OSError, match="broke off at 400"):
        download.download("pets", tmp_path / "root")
    download.download("pets", tmp_path / "root")
    download.download("pets", tmp_path / "root")
    assert server.ranges == [0, 400, 0]
    assert "Oxford-IIIT Pets is in" in capsys.readouterr().out
    fetched = data.load("pets", "test", tmp_path / "root")
    assert [e.id for e in fetched] == [e.id for e in data.load("pets", "test", tmp_path / "made")]
    assert fetched[0].image().size == (24, 16)

    shutil.rmtree(tmp_path / "root/pets/images")  # something was lost: it is unpacked again
    download.download("pets", tmp_path / "root")
    assert data.load("pets", "test", tmp_path / "root")[0].image()
    assert len(server.ranges) == 3


@pytest.mark.parametrize("member", [
    ("../out.txt", b"x"), ("/tmp/speciarl-out.txt", b"x"), ("a/../../out.txt", b"x"), ("link/out.txt", b"x"),
    special("to", tarfile.SYMTYPE, "/etc/passwd"), special("to", tarfile.SYMTYPE, "a.txt"),
    special("hard", tarfile.LNKTYPE, "../secret"), special("pipe", tarfile.FIFOTYPE),
    special("device", tarfile.CHRTYPE)], ids=lambda m: m[0] if isinstance(m, tuple) else m.name + m.linkname)
def test_no_member_leaves_the_folder_and_no_link_is_made_or_followed(tmp_path, member):
    inside = tmp_path / "in"
    inside.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "secret").write_text("secret")
    (inside / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "evil.tgz").write_bytes(packed(("a.txt", b"fine"), member))
    with pytest.raises(ValueError, match="evil.tgz: .* refused") as e:
        download.unpack(tmp_path / "evil.tgz", inside)
    assert "\n" not in str(e.value)
    assert not os.path.exists("/tmp/speciarl-out.txt")
    assert {f.name for f in inside.iterdir()} == {"a.txt", "link"}
    assert not list((tmp_path / "elsewhere").iterdir())
    assert {f.name for f in tmp_path.iterdir()} == {"in", "elsewhere", "secret", "evil.tgz"}


def test_a_hard_link_to_something_outside_is_replaced_not_written_through(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "precious").write_text("precious")
    os.link(tmp_path / "precious", tmp_path / "in/a.txt")
    (tmp_path / "in/own").mkdir()
    (tmp_path / "a.tgz").write_bytes(packed(("a.txt", b"new"), ("own/b.txt", b"b")))
    download.unpack(tmp_path / "a.tgz", tmp_path / "in")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "in/a.txt").read_text() == "new"

    (tmp_path / "in/inner").symlink_to("own")  # a link that stays inside is not followed either
    (tmp_path / "b.tgz").write_bytes(packed(("inner/b.txt", b"other")))
    with pytest.raises(ValueError, match="refused"):
        download.unpack(tmp_path / "b.tgz", tmp_path / "in")
    assert (tmp_path / "in/own/b.txt").read_text() == "b"


def test_a_disk_that_is_full_while_unpacking_is_named(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    (tmp_path / "a.tgz").write_bytes(packed(("a.txt", b"new")))
    monkeypatch.setattr(tarfile.TarFile, "extract", full)
    with pytest.raises(OSError, match="cannot unpack .*a.tgz: .*No space left"):
        download.unpack(tmp_path / "a.tgz", tmp_path)


def test_a_damaged_archive_is_said_and_not_taken_for_whole(server, tmp_path, monkeypatch):
    members = [(f"CUB_200_2011/{i}.bin", os.urandom(2000)) for i in range(20)]
    whole = packed(*members)
    known = dataclasses.replace(data.CUB, url=server.url, files={"c.tgz": None})
    monkeypatch.setattr(data, "CUB", known)
    overwritten = whole[:9000] + bytes(500) + whole[9500:]
    for content in (whole[:len(whole) // 2], whole[:-4], b"none", overwritten):
        server.files["c.tgz"] = content
        with pytest.raises(OSError, match="c.tgz is damaged .*: delete it and fetch it again") as e:
            download.download("cub", tmp_path)
        assert "\n" not in str(e.value)
        assert not (tmp_path / "cub/.complete").exists()
        (tmp_path / "cub" / "c.tgz").unlink()
    server.files["c.tgz"] = whole
    download.download("cub", tmp_path)
    assert len(list((tmp_path / "cub/CUB_200_2011").iterdir())) == 20


def test_what_nobody_serves():
    with pytest.raises(ValueError, match="cannot download cars_train.tgz, .*Stanford's host is gone"):
        download.download("cars")
    with pytest.raises(ValueError, match="toy cannot be downloaded"):
        download.download("toy")
    for name, known in data.published().items():
        if name != "cars":
            assert known.url.startswith("http")
            assert all(md5 is None or len(md5) == 32 for md5 in known.files.values())
