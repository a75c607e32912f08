"""The same adapter merged by every tool at hand: what is left of it, size, seconds and memory, as a Markdown table.

    table.py BASE ADAPTER TEXT [--calibrate TEXT] [--base16 MODEL] [--llama-cpp SOURCE] [--rounds 3] [--folder DIR] [--no-evaluation]

README.md beside this file says how to set the tools up. What is missing is left out of the table. A row of several commands has the sum of their
seconds and the largest of their peaks. Every command is run once a round, one after the other; medians are printed.
"""

import argparse
import importlib.metadata
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
QMERGE = os.environ.get("QMERGE", str(HERE.parent.parent / "target/release/qmerge"))
ENVIRONMENT = dict(os.environ, HF_HUB_OFFLINE="1")


def script(name, *arguments):
    return [sys.executable, str(HERE / name), *map(str, arguments)]


def run(command):
    """Runs a command; seconds, seconds of CPU, and peak memory in MiB."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, env=ENVIRONMENT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            log.seek(0)
            raise SystemExit(f"{' '.join(map(str, command))}\n{log.read().decode(errors='replace')[-4000:]}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def size(path):
    """Bytes of the weights."""
    path = pathlib.Path(path)
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.glob("*.safetensors"))


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


class Table:
    def __init__(self, folder):
        self.folder = folder
        self.commands = {}  # output → command
        self.rows = []      # label, format, outputs of its commands; the last is the merge

    def command(self, output, *command):
        """A command that writes `output`; in it, OUT stands for the path."""
        output = self.folder / output
        self.commands[output] = [output if part == "OUT" else part for part in command]
        return output

    def row(self, label, form, *outputs):
        self.rows.append((label, form, outputs))


def plan(args, table):
    base, adapter = args.base, args.adapter
    peft = table.command("peft", *script("peft_merge.py", base, adapter), "OUT")
    table.row("PEFT `merge_and_unload`", "NF4", peft)
    for source, model in (("the decoded base", base), ("the 16-bit base", args.base16)):
        if model:
            place = "decoded" if model == base else "original"
            merged = table.command(f"sixteen-{place}", *script("sixteen_bit.py", model, adapter), "OUT")
            table.row(f"as Unsloth, into {source}", "bf16", merged)
            again = table.command(f"requantized-{place}", *script("requantize.py", merged), "OUT")
            table.row("… then bitsandbytes", "NF4", merged, again)
    if args.llama_cpp:
        plain, gguf = table.folder / "decoded-base", table.folder / "base-f16.gguf"
        if not gguf.exists():  # a user of llama.cpp has it
            run([QMERGE, "convert", "--base", base, "--to", "bf16", "-o", plain])
            run([sys.executable, args.llama_cpp / "convert_hf_to_gguf.py", plain, "--outtype", "f16", "--outfile", gguf])
        tools = args.llama_cpp / "build/bin"
        lora = table.command("adapter.gguf", sys.executable, args.llama_cpp / "convert_lora_to_gguf.py", "--base", base, adapter, "--outfile", "OUT")
        merged = table.command("export-f16.gguf", tools / "llama-export-lora", "-m", gguf, "--lora", lora, "-o", "OUT")
        table.row("`llama-export-lora`", "GGUF F16", lora, merged)
        for form in ("Q8_0", "Q4_0"):
            again = table.command(f"export-{form}.gguf", tools / "llama-quantize", merged, "OUT", form)
            table.row("… then `llama-quantize`", f"GGUF {form}", lora, merged, again)
    qmerge = [QMERGE, "merge", "--base", base, "--adapter", adapter, "-o", "OUT"]
    variants = [("nearest", ["--rounding", "nearest"]), ("fast", ["--fast"]), ("default", [])]
    if args.calibrate:
        variants.append(("calibrate", ["--calibrate", args.calibrate]))
    for name, options in [*variants, ("bf16", ["--to", "bf16"])]:
        label = " ".join(["`qmerge merge", *("TEXT" if part == args.calibrate else part for part in options)]) + "`"
        table.row(label, "bf16" if name == "bf16" else "NF4", table.command(f"qmerge-{name}", *qmerge, *options))


def versions(llama_cpp):
    found = [subprocess.run([QMERGE, "--version"], capture_output=True, text=True, check=True).stdout.strip()]
    found += [f"{name} {importlib.metadata.version(name)}" for name in ("peft", "bitsandbytes", "transformers", "torch")]
    if llama_cpp:
        said = subprocess.run([llama_cpp / "build/bin/llama-export-lora", "--version"], capture_output=True, text=True)
        found.append("llama.cpp " + (said.stdout + said.stderr).split("version:", 1)[-1].splitlines()[0].strip())
    return ", ".join(found)


def machine():
    names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "adapter", "text"):
        parser.add_argument(name)
    parser.add_argument("--calibrate", help="text like the adapter's task")
    parser.add_argument("--base16", help="the 16-bit model that the base was quantized from")
    parser.add_argument("--llama-cpp", type=pathlib.Path, help="llama.cpp's source, built in its folder `build`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=pathlib.Path, help="keep the merges here")
    parser.add_argument("--no-evaluation", action="store_true", help="only size, seconds and memory")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        table = Table(folder)
        plan(args, table)
        used = {output: [] for output in table.commands}
        loads = [os.getloadavg()[0]]
        for number in range(args.rounds):
            for output, command in table.commands.items():
                remove(output)
                used[output].append(run(command))
                print(f"round {number + 1}: {output.name} {used[output][-1][0]:.1f} s", file=sys.stderr)
                loads.append(os.getloadavg()[0])
        behaviour = {}
        if not args.no_evaluation:
            from evaluate import evaluate

            for name, _, kl, top1, gain in evaluate(args.base, args.adapter, args.text, [row[2][-1] for row in table.rows]):
                behaviour[name] = f"{gain:.1%} | {kl:.4f} | {top1:.1%}".replace("%", " %")
                print(name, behaviour[name], file=sys.stderr)
        print("| merge | weights | gain kept | KL | top-1 | size, MB | seconds | CPU seconds | peak memory, MiB |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        print(f"| the base | as stored | {behaviour.get('base', '| |')} | {size(args.base) / 1e6:.1f} | | | |")
        print(f"| the adapter kept apart | as stored | {behaviour.get('apart', '| |')} | {(size(args.base) + size(args.adapter)) / 1e6:.1f} | | | |")
        for label, form, outputs in table.rows:
            rounds = list(zip(*(used[output] for output in outputs)))
            seconds, cpu = (statistics.median(sum(step[i] for step in steps) for steps in rounds) for i in (0, 1))
            memory = statistics.median(max(step[2] for step in steps) for steps in rounds)
            weights = size(outputs[-1]) / 1e6
            print(f"| {label} | {form} | {behaviour.get(outputs[-1], '| |')} | {weights:.1f} | {seconds:.2f} | {cpu:.2f} | {memory:.0f} |")
        print(f"\n{machine()}, medians of {args.rounds} rounds, load {min(loads):.1f} to {max(loads):.1f}. {versions(args.llama_cpp)}.")


main()
