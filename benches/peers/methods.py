"""Adapters of several of PEFT's methods, trained on one quantized base and merged into it: what is left of each by each way of rounding, and by PEFT, as JSON.

    methods.py BASE TEXT OUT.json --calibrate TEXT [--methods ia3,lokr] [--ways fast,default] [--steps 60] [--windows 6] [--context 512] [--threads 1] [--title WORDS] [--folder DIR]

BASE is a folder in bitsandbytes NF4. An adapter of each method is trained by train.py on the text given to --calibrate, on BASE decoded to bf16 (kept in DIR, so that a second run
trains nothing). Then `qmerge merge` is run with --rounding nearest, --fast, and by default, PEFT's `merge_and_unload` on BASE itself where the method has a merge for bitsandbytes'
layers, and `qmerge compare` on TEXT. benches/figures/write.py puts OUT.json into the book.
"""

import argparse
import datetime
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
QMERGE = os.environ.get("QMERGE", str(HERE.parent.parent / "target/release/qmerge"))
WAYS = {"nearest": ["--rounding", "nearest"], "fast": ["--fast"], "default": []}


def run(*command):
    """What a command printed, and its seconds of CPU."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 3):  # 3: the verdict is that little is left
        raise RuntimeError(done.stderr[-3000:])
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def peft_merge(base, adapter, target, threads):
    """PEFT's own merge into the base as it is stored; or in its words why there is none."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        run(sys.executable, HERE / "peft_merge.py", base, adapter, target)
    except RuntimeError as error:
        return str(error).strip().splitlines()[-1]
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "text", "out"):
        parser.add_argument(name)
    parser.add_argument("--calibrate", required=True, help="text to train on; the merges calibrate on what the model writes, as they do by default")
    parser.add_argument("--methods", default="dora,ia3,lokr,oft")
    parser.add_argument("--ways", default=",".join([*WAYS, "peft"]), help="measure these; of a method that OUT.json has, the others stay as they are there")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--title")
    parser.add_argument("--folder", type=pathlib.Path, help="keep adapters here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        out = pathlib.Path(args.out)
        found = json.loads(out.read_text()) if out.exists() else {"rows": {}}
        found |= {
            "title": args.title or pathlib.Path(args.base).name, "program": subprocess.check_output([QMERGE, "--version"], text=True).strip(),
            "steps": args.steps, "windows": args.windows, "context": args.context, "date": datetime.date.today().isoformat(),
        }
        threads = ["--threads", args.threads]
        plain = folder / "base-bf16"
        if not plain.exists():
            run(QMERGE, "convert", "--base", args.base, "--to", "bf16", "-o", plain, *threads)
        for name in args.methods.split(","):
            adapter, row, merged = folder / name, found["rows"].get(name, {}), []
            if not adapter.exists():
                trained, _ = run(sys.executable, HERE / "train.py", plain, name, args.calibrate, adapter, "--steps", args.steps, "--threads", args.threads)
                print(trained, file=sys.stderr)
            for way, options in WAYS.items():
                if way not in args.ways.split(","):
                    continue
                target = folder / f"{name}-{way}"
                sources = ["--base", args.base, "--adapter", adapter, "-o", target, "--force", "--measure", "never"]
                _, seconds = run(QMERGE, "merge", *sources, *options, *threads)
                row[way] = {"cpu_seconds": round(seconds, 1)}
                merged.append(way)
            if "peft" in args.ways.split(","):
                refused = peft_merge(args.base, adapter, folder / f"{name}-peft", args.threads)
                row["peft"] = {"refused": refused} if refused else {}
                merged += [] if refused else ["peft"]
            models = [part for way in merged for part in ("--merged", folder / f"{name}-{way}")]
            sources = ["--base", args.base, "--adapter", adapter, *models, "--text", args.text]
            text, _ = run(QMERGE, "compare", *sources, "--windows", args.windows, "--context", args.context, "--continuation", 0, "--json", *threads)
            models = json.loads(text)["models"]
            row |= {"base_kl": models[0]["kl"], "base_loss": models[0]["loss"], "apart_loss": models[1]["loss"]}
            for way, model in zip(merged, models[2:]):
                row[way].update(gain_kept=model["gain_kept"], kl=model["kl"], kl_se=model.get("kl_se"))
            found["rows"][name] = row
            out.write_text(json.dumps(found, indent=1) + "\n")
            print(name, json.dumps(row), file=sys.stderr)
            for way in [*WAYS, "peft"]:
                shutil.rmtree(folder / f"{name}-{way}", ignore_errors=True)


if __name__ == "__main__":
    main()
