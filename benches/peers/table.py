"""The same adapter merged by every tool at hand: what is left of it, size, seconds and memory, as a Markdown table.

    table.py BASE ADAPTER TEXT [--calibrate TEXT] [--base16 MODEL] [--llama-cpp SOURCE] [--mlx PYTHON]
             [--rounds 3] [--folder DIR] [--no-evaluation]

README.md beside this file says how to set the tools up. What is missing is left out of the table. A row of several commands has the sum of their
seconds and the largest of their peaks. Every command is run once a round, one after the other, and medians are printed; one that took more than a
minute is run once.
"""

import argparse
import hashlib
import importlib.metadata
import json
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
LONG = 60  # seconds: a command that took longer is not repeated
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


def files(path):
    """The files of weights: a file itself, or what a folder has."""
    path = pathlib.Path(path)
    return [path] if path.is_file() else sorted(path.glob("*.safetensors"))


def size(path):
    """Bytes of the weights."""
    return sum(file.stat().st_size for file in files(path))


def behaviour(args, folder, base, outputs):
    """Gain kept, KL and top-1 of base, adapter apart and each output, as cells. What was measured once for the same bytes is not measured again."""
    def key(*paths):
        digest = hashlib.sha256()
        for file in (file for path in paths for file in files(path)):
            digest.update(hashlib.file_digest(open(file, "rb"), "sha256").digest())
        return digest.hexdigest()

    memory = folder / "behaviour.json"
    known = json.loads(memory.read_text()) if memory.exists() else {}
    keys = {output: key(args.text, base, args.adapter, output) for output in outputs}
    keys |= {name: key(args.text, base, args.adapter) + name for name in ("apart", "base")}
    if any(k not in known for k in keys.values()):
        from evaluate import evaluate

        for name, _, kl, top1, gain in evaluate(base, args.adapter, args.text, {keys[o]: o for o in outputs if keys[o] not in known}.values()):
            known[keys[name]] = f"{gain:.1%} | {kl:.4f} | {top1:.1%}".replace("%", " %")
            memory.write_text(json.dumps(known, indent=1))
            print(name, known[keys[name]], file=sys.stderr)
    return {name: known[k] for name, k in keys.items()}


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

    def row(self, label, form, *outputs, base=None):
        """A merge; `base` if the adapter kept apart on another base than the table's is its measure."""
        self.rows.append((label, form, outputs, base))

    def decoded_base(self, base):
        """The base in bf16, for tools that do not read bitsandbytes' formats."""
        plain = self.folder / "decoded-base"
        if not plain.exists():
            run([QMERGE, "convert", "--base", base, "--to", "bf16", "-o", plain])
        return plain


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
        plain, gguf = table.decoded_base(base), table.folder / "base-f16.gguf"
        if not gguf.exists():  # a user of llama.cpp has it
            run([sys.executable, args.llama_cpp / "convert_hf_to_gguf.py", plain, "--outtype", "f16", "--outfile", gguf])
        tools = args.llama_cpp / "build/bin"
        lora = table.command("adapter.gguf", sys.executable, args.llama_cpp / "convert_lora_to_gguf.py", "--base", plain, adapter, "--outfile", "OUT")
        merged = table.command("export-f16.gguf", tools / "llama-export-lora", "-m", gguf, "--lora", lora, "-o", "OUT")
        table.row("`llama-export-lora`", "GGUF F16", lora, merged)
        for form in ("Q8_0", "Q4_0"):
            again = table.command(f"export-{form}.gguf", tools / "llama-quantize", merged, "OUT", form)
            table.row("… then `llama-quantize`", f"GGUF {form}", lora, merged, again)
    if args.mlx:
        plain, quantized, lora = table.decoded_base(base), table.folder / "mlx-base", table.folder / "mlx-adapter"
        if not quantized.exists():  # a user of mlx has them
            run([args.mlx, "-m", "mlx_lm", "convert", "--hf-path", plain, "--mlx-path", quantized, "-q", "--q-bits", "4", "--q-group-size", "64"])
            run(script("mlx_adapter.py", adapter, lora))
        merged = table.command("mlx-fused", args.mlx, "-m", "mlx_lm", "fuse", "--model", quantized, "--adapter-path", lora, "--save-path", "OUT")
        table.row("`mlx_lm fuse` (its own 4-bit base)", "MLX 4-bit", merged, base=quantized)
    qmerge = [QMERGE, "merge", "--base", base, "--adapter", adapter, "-o", "OUT"]
    variants = [("nearest", ["--rounding", "nearest"]), ("fast", ["--fast"]), ("default", [])]
    if args.calibrate:
        variants.append(("calibrate", ["--calibrate", args.calibrate]))
    for name, options in [*variants, ("bf16", ["--to", "bf16"])]:
        label = " ".join(["`qmerge merge", *("TEXT" if part == args.calibrate else part for part in options)]) + "`"
        table.row(label, "bf16" if name == "bf16" else "NF4", table.command(f"qmerge-{name}", *qmerge, *options))


def versions(llama_cpp, mlx):
    found = [subprocess.run([QMERGE, "--version"], capture_output=True, text=True, check=True).stdout.strip()]
    found += [f"{name} {importlib.metadata.version(name)}" for name in ("peft", "bitsandbytes", "transformers", "torch")]
    if llama_cpp:
        said = subprocess.run([llama_cpp / "build/bin/llama-export-lora", "--version"], capture_output=True, text=True)
        found.append("llama.cpp " + (said.stdout + said.stderr).split("version:", 1)[-1].splitlines()[0].strip())
    if mlx:
        ask = "from importlib.metadata import version as v; print(f'mlx {v(\"mlx\")}, mlx-lm {v(\"mlx-lm\")}')"
        found.append(subprocess.run([mlx, "-c", ask], capture_output=True, text=True, check=True).stdout.strip())
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
    parser.add_argument("--mlx", help="a Python with mlx and mlx-lm")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=pathlib.Path, help="keep the merges and their evaluations here")
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
                if used[output] and used[output][0][0] > LONG:
                    continue
                remove(output)
                used[output].append(run(command))
                print(f"round {number + 1}: {output.name} {used[output][-1][0]:.1f} s", file=sys.stderr)
                loads.append(os.getloadavg()[0])
        cells = {}
        if not args.no_evaluation:
            # The table's own base last: its rows of the base and the adapter apart are the ones that are shown.
            for base in sorted({row[3] for row in table.rows}, key=lambda base: base is None):
                cells |= behaviour(args, folder, base or args.base, [row[2][-1] for row in table.rows if row[3] == base])
        print("| merge | weights | gain kept | KL | top-1 | size, MB | seconds | CPU seconds | peak memory, MiB |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        print(f"| the base | as stored | {cells.get('base', '| |')} | {size(args.base) / 1e6:.1f} | | | |")
        print(f"| the adapter kept apart | as stored | {cells.get('apart', '| |')} | {(size(args.base) + size(args.adapter)) / 1e6:.1f} | | | |")
        for label, form, outputs, _ in table.rows:
            medians = [[statistics.median(column) for column in zip(*used[output])] for output in outputs]
            seconds, cpu = (sum(column[i] for column in medians) for i in (0, 1))
            memory = max(column[2] for column in medians)
            weights = size(outputs[-1]) / 1e6
            print(f"| {label} | {form} | {cells.get(outputs[-1], '| |')} | {weights:.1f} | {seconds:.2f} | {cpu:.2f} | {memory:.0f} |")
        print(f"\n{machine()}, medians of {args.rounds} rounds (one for what took over {LONG} s), load {min(loads):.1f} to {max(loads):.1f}. {versions(args.llama_cpp, args.mlx)}.")


if __name__ == "__main__":
    main()
