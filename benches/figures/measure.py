"""Measures merges of one model, and keeps the figures that the README and the book show.

    python3 benches/figures/measure.py NAME BASE ADAPTER TEXT --title TITLE [--calibrate TEXT] [--windows 16] [--peft PYTHON]

Every merge is a whole command: seconds, CPU seconds and peak memory are its process's, the median of three runs where a run takes less than ten
seconds, else of one; a merge that takes more memory than its plan said is an error. What is left of the adapter is what `qmerge compare` measures on TEXT, which neither training nor calibration saw; with --peft,
PEFT's own merge is among them, made by that interpreter. NAME.json beside this file is written; write.py puts it into the texts, and draw.py draws it.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import shutil
import statistics
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
QMERGE = os.environ.get("QMERGE", str(ROOT / "target/release/qmerge"))
LONG = 10
MERGES = {
    "nearest": ["--rounding", "nearest"],
    "stochastic": ["--rounding", "stochastic"],
    "fast": ["--fast"],
    "gptq": ["--rounding", "gptq"],
    "descent": ["--rounding", "descent"],
    "default": [],
    "int8": ["--to", "int8"],
    "bf16": ["--to", "bf16"],
    "bf16_nearest": ["--to", "bf16", "--rounding", "nearest"],
}


def machine():
    """The processor and what of it was there, in words."""
    name = platform.processor() or platform.machine()
    flags = ""
    if pathlib.Path("/proc/cpuinfo").exists():
        text = pathlib.Path("/proc/cpuinfo").read_text()
        name = re.search(r"model name\s*: (.*)", text)[1].strip() if "model name" in text else name
        flags = next((f", {label}" for flag, label in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if f" {flag} " in text), "")
    return f"{os.cpu_count()} cores of an {name}{flags}"


def run(command):
    """Seconds, CPU seconds and peak memory in bytes of a command."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(os.environ, HF_HUB_OFFLINE="1"))
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        if status:
            log.seek(0)
            raise SystemExit(f"{' '.join(command)}\n{log.read().decode(errors='replace')[-2000:]}")
    return seconds, usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss


def measured(command, out):
    """A merge's figures. `out` is what it writes."""
    rounds = []
    while not rounds or (rounds[0][0] < LONG and len(rounds) < 3):
        shutil.rmtree(out, ignore_errors=True)
        rounds.append(run(command))
    seconds, cpu, memory = (statistics.median(column) for column in zip(*rounds))
    if command[0] == QMERGE:
        promised = json.loads(subprocess.run([*command, "--dry-run", "--json"], check=True, capture_output=True, text=True).stdout)["memory_bytes"]
        if memory > promised:
            raise SystemExit(f"{' '.join(command)}: took {memory / 1e6:.0f} MB, and its plan said at most {promised / 1e6:.0f} MB")
    size = sum(file.stat().st_size for file in pathlib.Path(out).glob("*.safetensors"))
    inspection = subprocess.run([QMERGE, "inspect", str(out), "--json"], check=True, capture_output=True, text=True).stdout
    stored = json.loads(inspection)["format"]
    return {"format": stored, "seconds": seconds, "cpu_seconds": cpu, "memory": memory, "bytes": size, "rounds": len(rounds)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("base")
    parser.add_argument("adapter")
    parser.add_argument("text")
    parser.add_argument("--title", required=True)
    parser.add_argument("--calibrate")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--peft")
    parser.add_argument("--merges", default=",".join(MERGES), help="which of the merges, between commas")
    parser.add_argument("--keep", action="store_true", help="keep what was measured of other merges before")
    parser.add_argument("--behaviour", action="store_true", help="measure only what is left of the adapter, and memory: these merges' times, and all of others, stay as they were measured before")
    args = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="qmerge-figures-"))
    merges = dict({name: MERGES[name] for name in args.merges.split(",")}, **({"calibrate": ["--calibrate", args.calibrate]} if args.calibrate else {}))
    path = ROOT / "benches/figures" / f"{args.name}.json"
    before = json.loads(path.read_text()) if args.keep or args.behaviour else None
    if args.behaviour and (unknown := merges.keys() - before["rows"].keys()):
        parser.error(f"not measured before: {', '.join(sorted(unknown))}")
    rows = {}
    if args.peft:
        script = str(ROOT / "benches/peers/peft_merge.py")
        rows["peft"] = measured([args.peft, script, args.base, args.adapter, str(folder / "peft")], folder / "peft")
    for name, options in merges.items():
        out = folder / name
        command = [QMERGE, "merge", "--base", args.base, "--adapter", args.adapter, "-o", str(out), *options]
        if args.behaviour:
            rows[name] = before["rows"][name] | {"memory": run(command)[2]}
        else:
            rows[name] = measured(command, out)
        report = json.loads((out / "qmerge-report.json").read_text())
        rows[name].update({key: report["summary"].get(key) for key in ("survival", "kept_output")})
        least = min((weight for weight in report["weights"] if weight["survival"] is not None), key=lambda weight: weight["survival"])
        rows[name].update({"least_weight": least["name"], "least_survival": least["survival"], "least_kept_output": least.get("kept_output")})
        print(f"{name}: {report['verdict']['text']}", flush=True)
    outputs = [part for name in rows for part in ("--merged", str(folder / name))]
    command = [QMERGE, "compare", "--base", args.base, "--adapter", args.adapter, *outputs, "--text", args.text, "--windows", str(args.windows), "--continuation", "0", "--json"]
    comparison = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for model in comparison["models"]:
        row = rows.setdefault(pathlib.Path(model["name"]).name, {})
        row.update({key: model[key] for key in ("loss", "kl", "kl_se", "top1", "gain_kept") if model.get(key) is not None})
    version = subprocess.run([QMERGE, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    figures = {
        "title": args.title,
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "program": version,
        "text": pathlib.Path(args.text).name,
        "windows": args.windows,
        "rows": rows,
    }
    if before:
        figures["rows"] = before["rows"] | rows
    if args.behaviour:
        figures["machine"] = before["machine"]
    path.write_text(json.dumps(figures, indent=1) + "\n")
    shutil.rmtree(folder)
    print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
