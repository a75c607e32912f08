"""The whole program on a random Llama in NF4 (or --format), against a copy of the same files and against PEFT, in one run.

    cargo build --release -p qmerge-cli && cargo build --release -p qmerge --example random_llama
    python3 benches/whole_program.py [--size 1b|7b] [--format nf4|fp8|…] [--runs 5] [--folder DIR] [--rounding METHOD] [--peft PYTHON] [--json OUT]

Each round does `cp -r base copy && sync`, then `qmerge merge --rounding nearest && sync`, which is what PEFT does (the default method runs the model: minutes, see README); medians and the median of the ratios are printed. With --peft, PEFT's
load + merge + save is timed once by the given interpreter (its imports are not counted), and qmerge's speed is given as a multiple. --json puts
the figures into a file: benches/figures/copy.json has those of the book.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import statistics
import subprocess
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TARGET = os.path.join(HERE, "../target/release")


def timed(command):
    """Seconds (with the sync behind it) and peak memory in MiB of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    subprocess.run(["sync"], check=True)
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="1b")
    parser.add_argument("--format", default="nf4", help="what the base is stored in: NF4, or what `qmerge convert --to` makes of that")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", default="/tmp/qmerge-bench")
    parser.add_argument("--rounding", default="nearest")
    parser.add_argument("--peft", help="a Python with peft, bitsandbytes and transformers")
    parser.add_argument("--json", help="a file for the figures, beside those of other formats that it has")
    args = parser.parse_args()
    model = os.path.join(args.folder, args.size)
    base, adapter = os.path.join(model, "base"), os.path.join(model, "adapter")
    if not os.path.exists(base):
        subprocess.run([os.path.join(TARGET, "examples/random_llama"), model, args.size], check=True)
    if args.format != "nf4":
        made = f"{base}-{args.format}"
        if not os.path.exists(made):
            plain = f"{base}-bf16"
            for of, to, at in ((base, "bf16", plain), (plain, args.format, made)):
                subprocess.run([os.path.join(TARGET, "qmerge"), "convert", "--quiet", "--base", of, "--to", to, "-o", at], check=True)
            shutil.rmtree(plain)
        base = made
    copy, out = os.path.join(args.folder, "copy"), os.path.join(args.folder, "out")
    merge = [os.path.join(TARGET, "qmerge"), "merge", "--quiet", "--base", base, "--adapter", adapter, "-o", out, "--rounding", args.rounding]
    rows = []
    for number in range(args.runs + 1):
        for folder in (copy, out, out + ".partial"):
            shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(["sync"], check=True)
        cp, _ = timed(["cp", "-r", base, copy])
        qmerge, memory = timed(merge)
        if number:  # the first round warms the page cache
            rows.append((cp, qmerge, qmerge / cp, memory))
    size = sum(os.path.getsize(os.path.join(base, name)) for name in os.listdir(base))
    medians = [statistics.median(column) for column in zip(*rows)]
    print(f"{args.size} in {args.format}: {size / 1e6:.0f} MB, {args.runs} rounds, medians")
    print(f"cp -r + sync     {medians[0]:6.2f} s")
    print(f"qmerge + sync    {medians[1]:6.2f} s, {medians[2]:.2f} x cp (min {min(r[2] for r in rows):.2f}), peak {medians[3]:.0f} MiB")
    if args.json:
        found = {"rows": {}}
        if os.path.exists(args.json):
            with open(args.json, encoding="utf-8") as file:
                found = json.load(file)
        copied, seconds, times, memory = medians
        found["rows"][args.format] = {"size": args.size, "bytes": size, "copy_seconds": round(copied, 2), "seconds": round(seconds, 2), "times": round(times, 2), "memory_mib": round(memory)}
        found.update(date=str(datetime.date.today()), rounds=args.runs)
        with open(args.json, "w", encoding="utf-8") as file:
            file.write(json.dumps(found, indent=1) + "\n")
    if args.peft:
        shutil.rmtree(out, ignore_errors=True)
        text = subprocess.run([args.peft, os.path.join(HERE, "peers/peft_merge.py"), base, adapter, out], check=True, capture_output=True, text=True).stdout
        seconds = float(re.search(r"load\+merge\+save ([0-9.]+) s", text).group(1))
        print(f"PEFT             {seconds:6.2f} s ({text.strip()}); qmerge is {seconds / medians[1]:.0f} x faster")
    for folder in (copy, out):
        shutil.rmtree(folder, ignore_errors=True)


main()
