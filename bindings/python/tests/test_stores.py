"""Models and outputs in an S3 server, behind a proxy that fails in the ways that networks do."""

from __future__ import annotations

import http.client
import os
import random
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Iterator

import pytest

boto3 = pytest.importorskip("boto3")
moto = pytest.importorskip("moto.server")

# More by hand: QMERGE_MERGES=200.
MERGES = int(os.environ.get("QMERGE_MERGES", "6"))
SECRET = "s3cr3t-key"
PROGRAM = os.environ.get("QMERGE_PROGRAM", "qmerge")


class Proxy(BaseHTTPRequestHandler):
    """Passes requests on. One in `every` goes wrong, each time in another way."""

    protocol_version = "HTTP/1.1"
    target = ""
    every = 0
    chance = random.Random(7)
    told: list[str] = []
    sent: dict[str, int] = {}
    # Requests with these words in their address are never answered.
    held = ""
    reached = threading.Event()
    released = threading.Event()

    def log_message(self, *_: object) -> None:
        pass

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.held and self.held in self.path:
            self.reached.set()
            self.released.wait(60)
            self.close_connection = True
            return
        faults = ("reset", "busy", "cut", "slow", "lost")
        fault = self.chance.choice(faults) if self.every and self.chance.randrange(self.every) == 0 else ""
        if fault:
            self.told.append(fault)
        if fault == "reset":
            self.close_connection = True
            return
        if fault == "slow":
            time.sleep(0.2)
        status, headers, content = 503, [], b""
        if fault != "busy":
            server = http.client.HTTPConnection(self.target)
            server.request(self.command, self.path, body, dict(self.headers))
            answer = server.getresponse()
            status, headers, content = answer.status, answer.getheaders(), answer.read()
            length = answer.getheader("Content-Length")
            server.close()
        if fault == "lost":
            # It was done, and nobody hears of it.
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(content)))
        self.end_headers()
        if self.command == "GET":
            path = self.path.split("?")[0]
            self.sent[path] = self.sent.get(path, 0) + len(content)
        if fault == "cut":
            self.close_connection = True
            content = content[: len(content) // 2]
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on


class Server:
    """A bucket, as the program sees it through the proxy and as it is."""

    def __init__(self, address: str, client: object) -> None:
        self.address, self.client = address, client

    def run(self, *words: str, kill_after: float | None = None, kill_at: str = "") -> subprocess.CompletedProcess[str]:
        """Is killed after so many seconds, or when it asks for an address with these words in it."""
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        environment |= {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.address,
        }
        Proxy.reached.clear()
        Proxy.released.clear()
        Proxy.held = kill_at
        process = subprocess.Popen([PROGRAM, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if kill_at:
            reached = Proxy.reached.wait(60)
            process.kill()
            Proxy.held = ""
            Proxy.released.set()
            assert reached, process.communicate()[1]
        try:
            out, err = process.communicate(timeout=kill_after)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        assert SECRET not in out + err
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def names(self, prefix: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="models", Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def read(self, name: str) -> bytes:
        return self.client.get_object(Bucket="models", Key=name)["Body"].read()

    def uploads(self) -> list[str]:
        return [upload["Key"] for upload in self.client.list_multipart_uploads(Bucket="models").get("Uploads", [])]

    def remove(self, prefix: str) -> None:
        for name in self.names(prefix):
            self.client.delete_object(Bucket="models", Key=name)


@pytest.fixture(scope="module")
def server(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    mock = moto.ThreadedMotoServer(port=0, verbose=False)
    mock.start()
    Proxy.target = "127.0.0.1:{}".format(mock._server.server_port)
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    client = boto3.client("s3", endpoint_url=f"http://{Proxy.target}", region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key=SECRET)
    client.create_bucket(Bucket="models")
    for folder in ("base-nf4", "adapter"):
        for file in (demo / folder).iterdir():
            client.put_object(Bucket="models", Key=f"in/{folder}/{file.name}", Body=file.read_bytes())
    yield Server(f"http://127.0.0.1:{proxy.server_port}", client)
    proxy.shutdown()
    mock.stop()


@pytest.fixture(autouse=True)
def without_faults() -> Iterator[None]:
    Proxy.every = 0
    yield
    Proxy.every = 0


SOURCES = ("--base", "s3://models/in/base-nf4", "--adapter", "s3://models/in/adapter")


def local(demo: Path, folder: Path, *options: str) -> Path:
    """The same merge on the disk."""
    subprocess.run([PROGRAM, "merge", str(demo / "base-nf4"), str(demo / "adapter"), "-o", str(folder), *options], check=True, capture_output=True)
    return folder


def check(server: Server, name: str, expected: Path) -> None:
    """The output is whole and right, and nothing else is left."""
    check_whole(server, name, expected)
    assert server.names(f"{name}.partial") == [] and server.uploads() == []


def check_whole(server: Server, name: str, expected: Path) -> None:
    files = sorted(file.name for file in expected.iterdir())
    assert sorted(key.removeprefix(f"{name}/") for key in server.names(f"{name}/")) == files
    for file in files:
        # These say how long it took, and where it lies.
        if file not in ("qmerge-report.json", "README.md"):
            assert server.read(f"{name}/{file}") == (expected / file).read_bytes(), file
    for file in ("qmerge-report.json", "README.md"):
        assert SECRET.encode() not in server.read(f"{name}/{file}")


def test_a_merge_from_a_bucket_into_one(server: Server, demo: Path, tmp_path: Path) -> None:
    expected = local(demo, tmp_path / "out")
    done = server.run("merge", *SOURCES, "-o", "s3://models/out")
    assert done.returncode == 0, done.stderr
    check(server, "out", expected)
    again = server.run("merge", *SOURCES, "-o", "s3://models/out")
    assert again.returncode != 0 and "the output exists already" in again.stderr
    replaced = server.run("merge", *SOURCES, "-o", "s3://models/out", "--force", "--fast")
    assert replaced.returncode == 0, replaced.stderr
    check(server, "out", local(demo, tmp_path / "fast", "--fast"))
    itself = server.run("merge", *SOURCES, "-o", "s3://models/in/base-nf4", "--force", "--fast")
    assert itself.returncode != 0 and "would replace an input" in itself.stderr
    found = server.run("inspect", "s3://models/out")
    assert found.returncode == 0 and "llama" in found.stdout, found.stderr
    server.remove("out/")


def test_one_file(server: Server, demo: Path, tmp_path: Path) -> None:
    expected = local(demo, tmp_path / "one.safetensors", "--fast")
    done = server.run("merge", *SOURCES, "-o", "s3://models/one.safetensors", "--fast")
    assert done.returncode == 0, done.stderr
    assert server.read("one.safetensors") == expected.read_bytes()
    assert server.names("one") == ["one.qmerge-report.json", "one.safetensors"] and server.uploads() == []
    server.remove("one")


def test_faults_change_no_byte(server: Server, demo: Path, tmp_path: Path) -> None:
    expected = local(demo, tmp_path / "out", "--fast")
    for number in range(MERGES):
        Proxy.every = 5 + number % 7
        done = server.run("merge", *SOURCES, "-o", f"s3://models/faults-{number}", "--fast")
        Proxy.every = 0
        assert done.returncode == 0, done.stderr
        check(server, f"faults-{number}", expected)
        server.remove(f"faults-{number}/")
    assert len(set(Proxy.told)) == 5, "each kind of fault occurred"


def test_kills_are_gone_on_with(server: Server, slow: Path, tmp_path: Path) -> None:
    sources = ("--base", str(slow / "base"), "--adapter", str(slow / "adapter"), "--to", "nf4", "--fast", "--threads", "1")
    whole = server.run("merge", *sources, "-o", str(tmp_path / "out"))
    assert whole.returncode == 0, whole.stderr
    killed = 0
    # The first is killed before any machine is done.
    for _ in range(40):
        done = server.run("merge", *sources, "-o", "s3://models/killed", "--resume", kill_after=0.3 * 1.4**killed)
        if done.returncode == 0:
            break
        if "the output exists already" in done.stderr:
            # The one before was killed when nothing was left to do.
            break
        killed += 1
        # Nobody takes for a model what is not whole.
        if "killed/config.json" in server.names("killed/"):
            check_whole(server, "killed", tmp_path / "out")
    assert killed > 0, "it was never killed"
    check(server, "killed", tmp_path / "out")
    server.remove("killed/")


def test_what_is_given_up_is_aborted(server: Server, slow: Path, tmp_path: Path) -> None:
    sources = ("--base", str(slow / "base"), "--adapter", str(slow / "adapter"), "--to", "nf4", "--fast", "--threads", "1")
    server.run("merge", *sources, "-o", "s3://models/given-up", kill_at="partNumber=")
    assert server.names("given-up.partial") != [] and server.uploads() != []
    refused = server.run("merge", *sources, "-o", "s3://models/given-up")
    assert refused.returncode != 0 and "an interrupted run left its unfinished output here" in refused.stderr
    done = server.run("merge", *SOURCES, "-o", "s3://models/given-up", "--fast", "--force")
    assert done.returncode == 0, done.stderr
    assert server.names("given-up.partial") == [] and server.uploads() == []
    server.remove("given-up/")
