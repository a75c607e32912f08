"""An adapter merged into the GGUF file that people run: by qmerge into the file's own types, and by llama.cpp, as JSON.

    pip install llama-cpp-py-sync gguf numpy
    gguf_merge.py NAME MODEL.gguf ADAPTER TEXT OUT.json --title WORDS [--export-lora PROGRAM] [--calibrate TEXT] [--windows 6] [--context 512] [--folder DIR]

Rows: qmerge by default, with --fast, with --rounding nearest, with --promote auto, and with --calibrate where a text is given (--rows names those that are wanted, and what OUT.json has of others stays); llama-export-lora, which writes F16 (PROGRAM, built as README.md beside this file says), and
what llama-quantize makes of that at the types that the file's tensors had. `qmerge compare` on the first windows of TEXT says what is left of the adapter in all of them. llama.cpp
then runs each on the same windows, and goes on from four prompts, 24 tokens each; so does qmerge. `same` is how many tokens of those of qmerge llama.cpp has too before the first that differs,
`along` how many of qmerge's llama.cpp finds most likely where they stand; both are means of the four. benches/figures/write.py puts OUT.json into the book.
"""

import argparse
import datetime
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
QMERGE = os.environ.get("QMERGE", str(HERE.parent.parent / "target/release/qmerge"))
PROMPTS, PROMPT, TOKENS = 4, 32, 24


def run(*command):
    """Runs a command; its output, seconds, seconds of CPU, and peak bytes of memory."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
        process = subprocess.Popen([str(part) for part in command], stdout=out, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        log.seek(0)
        if status:
            raise SystemExit(f"{' '.join(map(str, command))}\n{log.read().decode(errors='replace')[-4000:]}")
        return out.read().decode(), seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def processor():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return f"{os.cpu_count()} cores of {line.split(':', 1)[1].strip()}"
    return f"{os.cpu_count()} cores of {platform.machine()}"


def merges(args, folder):
    """Makes each merge; its row and its file, by name."""
    made = {}

    def add(name, out, *commands):
        out.unlink(missing_ok=True)
        taken = [run(*command)[1:] for command in commands]
        seconds, processor_seconds, memory = (list(column) for column in zip(*taken))
        row = {"bytes": out.stat().st_size, "seconds": round(sum(seconds), 1), "cpu_seconds": round(sum(processor_seconds), 1), "memory": max(memory)}
        made[name] = row, out
        print(name, json.dumps(row), file=sys.stderr, flush=True)

    def qmerge(name, *options):
        if name not in args.rows.split(","):
            return
        out = folder / f"{name}.gguf"
        add(name, out, [QMERGE, "merge", "--base", args.model, "--adapter", args.adapter, "-o", out, "--force", "--measure", "never", *options])

    qmerge("nearest", "--rounding", "nearest")
    qmerge("fast", "--fast")
    qmerge("default")
    qmerge("promote", "--promote", "auto")
    if args.calibrate:
        qmerge("calibrate", "--calibrate", args.calibrate)
    if args.export_lora and "export" in args.rows.split(","):
        lora, exported, again = (folder / f"{name}.gguf" for name in ("lora", "export", "quantized"))
        lora.unlink(missing_ok=True)
        run(QMERGE, "convert-adapter", "--base", args.model, "--adapter", args.adapter, "--to", "gguf-lora", "-o", lora)
        add("export", exported, [args.export_lora, "-m", args.model, "--lora", lora, "-o", exported, "-t", str(os.cpu_count())])
        add("quantized", again, [sys.executable, HERE / "llama.py", "quantize", exported, again, args.model])
        for field in ("seconds", "cpu_seconds"):
            made["quantized"][0][field] = round(made["quantized"][0][field] + made["export"][0][field], 1)
    return made


def main():
    parser = argparse.ArgumentParser()
    for name in ("name", "model", "adapter", "text", "out"):
        parser.add_argument(name)
    parser.add_argument("--title", required=True)
    parser.add_argument("--export-lora")
    parser.add_argument("--rows", default="nearest,fast,default,promote,calibrate,export")
    parser.add_argument("--calibrate")
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--folder")
    args = parser.parse_args()
    folder = pathlib.Path(args.folder or tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    # What a command takes is told apart from what this process has loaded.
    made = merges(args, folder)
    import llama

    text = open(args.text).read()
    model = llama.Model(args.model, args.context + 8)
    tokens = model.tokens(text)
    prompts = []
    for number in range(PROMPTS):
        at = number * args.context
        prompts.append(" ".join(model.text(tokens[at : at + PROMPT]).split()))
    model.close()
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n")
    merged = [part for _, out in made.values() for part in ("--merged", out)]
    said = run(
        QMERGE, "compare", "--base", args.model, "--adapter", args.adapter, *merged, "--text", args.text, "--windows", args.windows, "--context", args.context,
        "--prompts", folder / "prompts.txt", "--continuation", TOKENS, "--json",
    )
    compared = json.loads(said[0])
    (folder / "compare.json").write_text(said[0])
    base = compared["models"][0]
    rows = {"base": {"bytes": os.path.getsize(args.model), "kl": base["kl"], "perplexity": base["perplexity"], "top1": base["top1"]}}
    for (name, (row, out)), own in zip(made.items(), compared["models"][2:]):
        row.update({field: own[field] for field in ("gain_kept", "kl", "kl_se", "top1", "perplexity")})
        model = llama.Model(out, args.context + 8)
        loss, number = model.loss(tokens, args.context, args.windows)
        if number != compared["tokens"]:
            raise SystemExit(f"llama.cpp scored {number} tokens, qmerge {compared['tokens']}")
        same, along, ahead = [], [], []
        for prompt, words in zip(prompts, own["generations"]):
            begin, wanted = model.tokens(prompt, True), model.tokens(words)[:TOKENS]
            found = model.greedy(begin, TOKENS)
            ahead.append(len(wanted))
            same.append(next((at for at, pair in enumerate(zip(found, wanted)) if pair[0] != pair[1]), min(len(found), len(wanted))))
            along.append(model.along(begin, wanted))
        model.close()
        row["llama_perplexity"] = math.exp(loss)
        row["same"], row["along"], row["continued"] = sum(same) / PROMPTS, sum(along) / PROMPTS, sum(ahead) / PROMPTS
        rows[name] = row
        print(name, json.dumps(row), file=sys.stderr, flush=True)
    out = pathlib.Path(args.out)
    found = json.loads(out.read_text()) if out.exists() else {"models": {}}
    before = found["models"].get(args.name, {}).get("rows", {})
    found["models"][args.name] = {"title": args.title, "windows": args.windows, "context": args.context, "rows": {**before, **rows}}
    found.update(program=run(QMERGE, "--version")[0].strip(), llama_cpp=llama.VERSION, machine=processor(), date=str(datetime.date.today()))
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
