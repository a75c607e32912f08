"""Models and outputs in Azure's store, as its emulator has it: `npm install azurite`, and AZURITE names its `azurite-blob`, or it is on the path."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import http.client
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
from pathlib import Path
from typing import Iterator

import pytest

AZURITE = os.environ.get("AZURITE") or shutil.which("azurite-blob")
PROGRAM = os.environ.get("QMERGE_PROGRAM", "qmerge")
# The account that every emulator has; its key is no secret, but is looked for as if it were.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

pytestmark = pytest.mark.skipif(not AZURITE, reason="there is no Azurite")


class Azure:
    """A container, as the program sees it and as it is."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, query: dict[str, str] = {}, body: bytes = b"") -> bytes:
        date = datetime.datetime.now(datetime.timezone.utc).strftime("%a, %d %b %Y %H:%M:%S GMT")
        headers = {"x-ms-date": date, "x-ms-version": "2021-12-02"}
        if method == "PUT" and not query:
            headers["x-ms-blob-type"] = "BlockBlob"
        length = str(len(body)) if body else ""
        known = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        resource = f"/{ACCOUNT}/{ACCOUNT}/{path}" + "".join(f"\n{name}:{query[name]}" for name in sorted(query))
        text = f"{method}\n\n\n{length}\n\n\n\n\n\n\n\n\n{known}{resource}"
        signature = base64.b64encode(hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()).decode()
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{signature}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        words = "?" + urllib.parse.urlencode(query) if query else ""
        connection.request(method, f"/{ACCOUNT}/{path}{words}", body, headers)
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status < 300, (method, path, answer.status, content)
        return content

    def names(self, prefix: str) -> list[str]:
        """Blobs, and those whose blocks were uploaded and never put together."""
        query = {"restype": "container", "comp": "list", "prefix": prefix, "include": "uncommittedblobs"}
        return re.findall("<Name>(.*?)</Name>", self.ask("GET", "models", query).decode())

    def run(self, *words: str, kill_after: float | None = None) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        environment |= {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_USE_EMULATOR": "true",
            "AZURITE_BLOB_STORAGE_URL": f"http://127.0.0.1:{self.port}",
        }
        process = subprocess.Popen([PROGRAM, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, err = process.communicate(timeout=kill_after)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        assert KEY not in out + err
        return subprocess.CompletedProcess(words, process.returncode, out, err)


@pytest.fixture(scope="module")
def azure(demo: Path) -> Iterator[Azure]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(AZURITE), "--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--blobPort", str(port)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    try:
        for _ in range(150):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.2)
        azure = Azure(port)
        azure.ask("PUT", "models", {"restype": "container"})
        for folder in ("base-nf4", "adapter"):
            for file in (demo / folder).iterdir():
                azure.ask("PUT", f"models/in/{folder}/{file.name}", body=file.read_bytes())
        yield azure
    finally:
        server.kill()
        server.wait()


SOURCES = ("--base", "az://models/in/base-nf4", "--adapter", "az://models/in/adapter")


def check(azure: Azure, name: str, expected: Path) -> None:
    """The output is whole and right, and nothing else is left."""
    check_whole(azure, name, expected)
    assert azure.names(name) == azure.names(f"{name}/")


def check_whole(azure: Azure, name: str, expected: Path) -> None:
    files = sorted(file.name for file in expected.iterdir())
    assert azure.names(f"{name}/") == [f"{name}/{file}" for file in files]
    for file in files:
        found = azure.ask("GET", f"models/{name}/{file}")
        if file in ("qmerge-report.json", "README.md"):
            assert KEY.encode() not in found
        else:
            assert found == (expected / file).read_bytes(), file


def test_a_merge_from_a_container_into_one(azure: Azure, demo: Path, tmp_path: Path) -> None:
    words = [PROGRAM, "merge", str(demo / "base-nf4"), str(demo / "adapter"), "-o", str(tmp_path / "out"), "--fast"]
    subprocess.run(words, check=True, capture_output=True)
    done = azure.run("merge", *SOURCES, "-o", "az://models/out", "--fast")
    assert done.returncode == 0, done.stderr
    check(azure, "out", tmp_path / "out")
    again = azure.run("merge", *SOURCES, "-o", "az://models/out", "--fast")
    assert again.returncode != 0 and "the output exists already" in again.stderr
    replaced = azure.run("merge", *SOURCES, "-o", "az://models/out", "--fast", "--force")
    assert replaced.returncode == 0, replaced.stderr
    check(azure, "out", tmp_path / "out")


def test_kills_are_gone_on_with(azure: Azure, slow: Path, tmp_path: Path) -> None:
    sources = ("--base", str(slow / "base"), "--adapter", str(slow / "adapter"), "--to", "nf4", "--fast", "--threads", "1")
    whole = azure.run("merge", *sources, "-o", str(tmp_path / "out"))
    assert whole.returncode == 0, whole.stderr
    killed = 0
    for _ in range(40):
        done = azure.run("merge", *sources, "-o", "az://models/killed", "--resume", kill_after=0.3 * 1.4**killed)
        if done.returncode == 0:
            break
        if "the output exists already" in done.stderr:
            # The one before was killed when nothing was left to do.
            break
        killed += 1
        # Nobody takes for a model what is not whole.
        if "killed/config.json" in azure.names("killed/"):
            check_whole(azure, "killed", tmp_path / "out")
    assert killed > 0, "it was never killed"
    check(azure, "killed", tmp_path / "out")
