"""A merge from a bucket into one, against a copy of the same files through the same server, in turns and in one run.

    cargo build --release -p qmerge-cli && cargo build --release -p qmerge --example random_llama && cargo build --release -p qmerge-cli --example bucket_server
    python3 benches/stores.py --folder DIR [--size 1b|7b] [--base nf4|bf16] [--shards MB] [--server own|moto] [--rounds 3] [--rounding METHOD ...] [--link 1gbit ...] [--write]

The server is a small one of our own, on this machine and in memory, or with `--server moto` that of moto (`pip install "moto[server]"`), which many test against: it is
Python, and takes a share of the processors that is printed and written too; for each range it reads the whole object, so `--shards 256` keeps it from taking hours. What a store far away would be is made of the loopback: `--link RATE` lets no more than that through it, in both
directions together (`tc`'s token bucket, which takes root); `none` is the loopback as it is, where a copy costs next to nothing. The copy asks for ranges of 8 MiB
and puts each as a part of an upload, on eight threads that sign nothing: a lower bound on what any client takes. A round is a copy and a merge; medians and the median of the ratios
are printed, the most memory that the merge held, and what it wrote to disks. `--write` puts them into benches/figures: our own server's with a base in NF4 into stores.json, others into
a document of their own, as stores_moto_bf16.json.
"""

import argparse
import collections
import contextlib
import datetime
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TARGET = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(HERE, "../target")), "release")
PART = 8 << 20
THREADS = 8
# What a merge may add to a file of the same size: times, the place, the report.
OWN = ("qmerge-report.json", "README.md")


class Store:
    """A bucket whose signatures nobody checks."""

    def __init__(self, host):
        self.host, self.own = host, threading.local()

    def ask(self, method, path, body=b"", **headers):
        # A server may close a connection that waited.
        for last in (False, True):
            if not getattr(self.own, "connection", None):
                self.own.connection = http.client.HTTPConnection(self.host)
            try:
                # Nobody checks it; without one it would be anybody's request, or of another kind of store.
                self.own.connection.request(method, path, body, {"Authorization": "AWS key:none", **headers})
                answer = self.own.connection.getresponse()
                content = answer.read()
                break
            except (http.client.HTTPException, OSError):
                self.own.connection = None
                if last:
                    raise
        if answer.status >= 300:
            sys.exit(f"{method} {path}: {answer.status} {content[:300]}")
        return answer.headers, content

    def names(self, prefix):
        found, token = [], ""
        while True:
            text = self.ask("GET", f"/models?list-type=2&prefix={prefix}{token}")[1].decode()
            found += re.findall("<Key>(.*?)</Key>", text)
            more = re.search("<NextContinuationToken>(.*?)</", text)
            if not more:
                return found
            token = "&continuation-token=" + more.group(1)

    def remove(self, prefix):
        for name in self.names(prefix):
            self.ask("DELETE", f"/models/{name}", **{"x-amz-date": "now"})

    def upload(self, name, count, piece):
        """An upload of so many parts, each from `piece`."""
        path = f"/models/{name}"
        number = re.search("<UploadId>(.*?)</", self.ask("POST", f"{path}?uploads")[1].decode()).group(1)
        tags, waiting = [None] * count, collections.deque(range(count))

        def work():
            while True:
                try:
                    at = waiting.popleft()
                except IndexError:
                    return
                tags[at] = self.ask("PUT", f"{path}?partNumber={at + 1}&uploadId={number}", piece(at))[0]["ETag"]

        threads = [threading.Thread(target=work) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        parts = "".join(f"<Part><PartNumber>{at + 1}</PartNumber><ETag>{tag}</ETag></Part>" for at, tag in enumerate(tags))
        self.ask("POST", f"{path}?uploadId={number}", f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode())

    def copy(self, name, size, to):
        def piece(at):
            return self.ask("GET", f"/models/{name}", Range=f"bytes={at * PART}-{min(size, (at + 1) * PART) - 1}")[1]

        self.upload(to, -(-size // PART), piece)

    def hash(self, name, size):
        digest = hashlib.sha256()
        for at in range(0, size, PART):
            digest.update(self.ask("GET", f"/models/{name}", Range=f"bytes={at}-{min(size, at + PART) - 1}")[1])
        return digest.hexdigest()


def started(server):
    """A server's process, and its bucket."""
    if server == "own":
        process = subprocess.Popen([os.path.join(TARGET, "examples/bucket_server")], stdout=subprocess.PIPE, text=True)
        store = Store(process.stdout.readline().strip().removeprefix("http://"))
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        store = Store(f"127.0.0.1:{port}")
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.1)
    store.ask("PUT", "/models")
    return process, store


def shards(source, target, limit):
    """The same model in files of at most about so many bytes, with their index, as models lie on the hub."""
    os.makedirs(target)
    with open(os.path.join(source, "model.safetensors"), "rb") as file:
        start = int.from_bytes(file.read(8), "little") + 8
        header = json.loads(file.read(start - 8))
        header.pop("__metadata__", None)
        groups, room = [], 0
        for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = tensor["data_offsets"]
            if end - begin > room:
                groups.append([])
                room = limit
            groups[-1].append(name)
            room -= end - begin
        index = {}
        for number, names in enumerate(groups, 1):
            shard, at, own = f"model-{number:05}-of-{len(groups):05}.safetensors", 0, {"__metadata__": {"format": "pt"}}
            for name in names:
                begin, end = header[name]["data_offsets"]
                own[name] = {**header[name], "data_offsets": [at, at + end - begin]}
                at += end - begin
                index[name] = shard
            text = json.dumps(own).encode()
            text += b" " * (-len(text) % 8)
            with open(os.path.join(target, shard), "wb") as out:
                out.write(len(text).to_bytes(8, "little") + text)
                for name in names:
                    begin, end = header[name]["data_offsets"]
                    file.seek(start + begin)
                    out.write(file.read(end - begin))
    with open(os.path.join(target, "model.safetensors.index.json"), "w") as file:
        json.dump({"metadata": {}, "weight_map": index}, file)
    for name in os.listdir(source):
        if not name.endswith(".safetensors"):
            shutil.copy(os.path.join(source, name), target)


def seconds_of(process):
    """Processor time of a process so far."""
    with open(f"/proc/{process.pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def limited(link):
    """The loopback at a rate."""
    shape = lambda *words: subprocess.run(["tc", "qdisc", *words], check=True)
    if link == "none":
        yield
        return
    shape("add", "dev", "lo", "root", "tbf", "rate", link, "burst", "4mb", "latency", "100ms")
    try:
        yield
    finally:
        shape("del", "dev", "lo", "root")


def run(command, host):
    """Seconds, those of processors, peak memory in MiB and MB written to disks of a command."""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://{host}"}
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, usage.ru_oublock * 512 / 1e6


def measured(link, args, process, store, sizes, expected):
    """Rows of figures, one for each rounding method."""
    rows = []
    for method in args.rounding:
        found = []
        for number in range(args.rounds):
            for prefix in ("copy/", "out/"):
                store.remove(prefix)
            start, server = time.perf_counter(), seconds_of(process)
            for name, size in sizes.items():
                store.copy(f"in/base/{name}", size, f"copy/{name}")
            copy, copy_server = time.perf_counter() - start, seconds_of(process) - server
            words = ["--base", "s3://models/in/base", "--adapter", "s3://models/in/adapter", "-o", "s3://models/out", "--rounding", method]
            server = seconds_of(process)
            merge, own, memory, disk = run([os.path.join(TARGET, "qmerge"), "merge", "--quiet", *words], store.host)
            merge_server = seconds_of(process) - server
            print(
                f"{link} {method}: copy {copy:.2f} s (server {copy_server:.2f}), merge {merge:.2f} s (own {own:.2f}, server {merge_server:.2f}),"
                f" {memory:.0f} MiB, {disk:.1f} MB to disks",
                file=sys.stderr,
            )
            found.append((copy, merge, merge / copy, memory, disk, own, copy_server, merge_server))
        for name, (size, digest) in expected[method].items():
            assert store.hash(f"out/{name}", size) == digest, name
        assert sorted(store.names("out")) == sorted(f"out/{name}" for name in [*expected[method], *OWN]), store.names("out")
        uploads = store.ask("GET", "/models?uploads")[1].decode()
        assert "<UploadId>" not in uploads, uploads
        medians = [statistics.median(column) for column in zip(*found)]
        rows.append({
            "server": args.server, "base": args.base, "files": sum(name.endswith(".safetensors") for name in sizes), "bytes": sum(sizes.values()), "link": link, "rounding": method, "copy_seconds": round(medians[0], 2), "merge_seconds": round(medians[1], 2),
            "own_cpu_seconds": round(medians[5], 2), "copy_server_cpu_seconds": round(medians[6], 2), "merge_server_cpu_seconds": round(medians[7], 2),
            "ratio": round(medians[2], 2), "peak_mib": round(max(row[3] for row in found)), "disk_mb": round(max(row[4] for row in found), 1),
        })
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="1b")
    parser.add_argument("--base", choices=["nf4", "bf16"], default="nf4", help="the format of the model")
    parser.add_argument("--shards", type=int, metavar="MB", help="cut the base into files of so many megabytes: moto reads a whole object for each range of it")
    parser.add_argument("--server", choices=["own", "moto"], default="own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rounding", nargs="+", default=["nearest", "stochastic"])
    parser.add_argument("--folder", required=True, help="where the model lies or is made, and a merge to compare with")
    parser.add_argument("--link", nargs="+", default=["none"], help="rates of the loopback, as tc says them; none for as it is")
    parser.add_argument("--write", action="store_true", help="put the figures into benches/figures")
    args = parser.parse_args()
    model = os.path.join(args.folder, args.size + ("" if args.base == "nf4" else f"-{args.base}"))
    base, adapter, out = (os.path.join(model, name) for name in ("base", "adapter", "out"))
    if not os.path.exists(base):
        subprocess.run([os.path.join(TARGET, "examples/random_llama"), model, args.size, args.base], check=True)
    if args.shards:
        whole, base = base, f"{base}-{args.shards}"
        if not os.path.exists(base):
            shards(whole, base, args.shards * 1_000_000)
    sizes = {name: os.path.getsize(os.path.join(base, name)) for name in os.listdir(base)}
    expected = {}
    for method in args.rounding:
        shutil.rmtree(out, ignore_errors=True)
        subprocess.run([os.path.join(TARGET, "qmerge"), "merge", "--quiet", base, adapter, "-o", out, "--rounding", method], check=True)
        expected[method] = {}
        for name in os.listdir(out):
            if name not in OWN:
                with open(os.path.join(out, name), "rb") as file:
                    expected[method][name] = (os.path.getsize(file.name), hashlib.file_digest(file, "sha256").hexdigest())
    shutil.rmtree(out)
    rows, places = [], {"base": base, "adapter": adapter}
    process, store = started(args.server)
    try:
        for folder in ("base", "adapter"):
            for name in os.listdir(places[folder]):
                path = os.path.join(places[folder], name)
                size = os.path.getsize(path)
                with open(path, "rb") as file:
                    store.upload(f"in/{folder}/{name}", max(1, -(-size // PART)), lambda at: os.pread(file.fileno(), PART, at * PART))
        for link in args.link:
            with limited(link):
                rows += measured(link, args, process, store, sizes, expected)
    finally:
        process.kill()
        process.wait()
    document = {"model": args.size, "rounds": args.rounds, "rows": rows}
    print(json.dumps(document, indent=1))
    if args.write:
        version = subprocess.run([os.path.join(TARGET, "qmerge"), "--version"], check=True, capture_output=True, text=True).stdout
        names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        document |= {"program": version.strip(), "machine": f"{len(names)} cores of {names[0]}", "date": datetime.date.today().isoformat()}
        # Rounds and date are of all rows of a document.
        name = "stores" if (args.server, args.base) == ("own", "nf4") else f"stores_{args.server}_{args.base}"
        with open(os.path.join(HERE, f"figures/{name}.json"), "w") as file:
            json.dump(document, file, indent=1)
            file.write("\n")


main()
