"""Writes the measured figures into README and book, so that none of them is typed.

    python3 benches/figures/write.py            # after measure.py or cost.py
    python3 benches/figures/write.py --check    # status 1 if a text does not say what the figures do

A block `<!-- figures: KIND NAME -->` … `<!-- end of figures -->` holds what KIND (a function below) makes of NAME.json beside this file. In a sentence
`<!-- figure: NAME ROW FIELD -->` … `<!-- / -->` holds one figure of a merge; neither may begin a line there, where Markdown takes it for HTML.
"""

import json
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LABELS = {
    "peft": "PEFT `merge_and_unload`",
    "nearest": "`qmerge merge --rounding nearest`: PEFT's bytes",
    "fast": "`qmerge merge --fast`: few tokens",
    "stochastic": "`qmerge merge --rounding stochastic`",
    "gptq": "`qmerge merge --rounding gptq`",
    "descent": "`qmerge merge --rounding descent`",
    "default": "`qmerge merge`",
    "calibrate": "`qmerge merge --calibrate TEXT`",
    "int8": "`qmerge merge --to int8`",
    "bf16": "`qmerge merge --to bf16`",
    "bf16_nearest": "`qmerge merge --to bf16 --rounding nearest`: PEFT's bytes",
}
FIGURE = re.compile(r"(<!-- figure: (\w+) (\w+) (\w+) -->).*?(<!-- / -->)")
BLOCK = re.compile(r"(<!-- figures: (\w+) (\w+) -->\n).*?(<!-- end of figures -->)", re.S)


def figures(name):
    return json.loads((HERE / f"{name}.json").read_text())


def seconds(value):
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def size(value):
    return f"{value / 1e6:.0f} MB" if value < 1e9 else f"{value / 1e9:.1f} GB"


def share(value):
    return f"{value:.1%}".replace("%", " %")


def figure(name, row, field):
    """One figure of a merge."""
    rows = figures(name)["rows"]
    if field == "effect_kept":
        return share(1 - rows[row]["kl"] / rows["base"]["kl"])
    value = rows[row][field]
    if field in ("gain_kept", "top1"):
        return share(value)
    if field == "least_weight":
        return f"`{value.removesuffix('.weight')}`"
    return f"{value:.4f}" if field == "kl" else f"{value:.2f}"


def table(heads, rows):
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def stored(row):
    """What most of a model is stored as."""
    return row["format"].split(" + ")[0]


def source(data):
    rest = f"{data['text']}, {data['windows']} windows of 512 tokens that neither training nor calibration saw"
    return f"{data['title']}; {rest}. {data['program']}, {data['machine']}, {data['date']}.\n"


def door(data):
    """Four ways to merge, for the first page."""
    rows = [
        [
            LABELS[name],
            stored(data["rows"][name]),
            f"**{share(data['rows'][name]['gain_kept'])}**",
            seconds(data["rows"][name]["seconds"]),
            size(data["rows"][name]["memory"]),
        ]
        for name in ("peft", "fast", "default", "bf16")
    ]
    return table(["merge", "into", "gain kept", "time", "memory"], rows) + "\n" + source(data)


def merges(data):
    """All merges of a model."""
    ordered = sorted((name for name in data["rows"] if name in LABELS), key=lambda name: data["rows"][name]["kl"])
    rows = []
    for name in ordered:
        row = data["rows"][name]
        cells = [LABELS[name], stored(row), f"{row['kl']:.4f} ± {row['kl_se']:.4f}", share(row["gain_kept"]), share(row["top1"])]
        rows.append(cells + [size(row["bytes"]), seconds(row["seconds"]), seconds(row["cpu_seconds"]), size(row["memory"])])
    base = data["rows"]["base"]
    text = f"\nThe base alone has a KL of {base['kl']:.4f} and a top-1 of {share(base['top1'])}. "
    heads = ["merge", "into", "KL to the adapter apart", "gain kept", "top-1", "size", "time", "CPU time", "peak memory"]
    return table(heads, rows) + text + source(data)


def methods(data):
    """The rounding methods into the base's own format, with the figures of the weights beside those of behaviour."""
    names = {"default": "`adapter`", "fast": "`adapter` with `--fast`: few tokens"}
    rows = []
    for name in sorted((name for name in data["rows"] if name in ("default", "descent", "gptq", "stochastic", "fast", "nearest")), key=lambda name: data["rows"][name]["kl"]):
        row = data["rows"][name]
        kept = f"{row['kept_output']:.3f}" if row.get("kept_output") is not None else ""
        cells = [names.get(name, f"`{name}`"), share(row["gain_kept"]), f"{row['kl']:.4f}", share(row["top1"]), f"{row['survival']:.3f}", kept]
        rows.append(cells)
    return table(["method", "gain kept", "KL", "top-1", "survival", "kept output"], rows) + "\n" + source(data)


def cost(data):
    """Time and memory by model size."""
    rows, is_measured = [], any(row.get("measured") for row in data["rows"])
    for row in data["rows"]:
        cells = [row["model"], size(row["bytes"]), row["merge"], seconds(row["predicted"]["seconds"]), size(row["predicted"]["memory"])]
        taken = row.get("measured")
        if is_measured:
            cells += [seconds(taken["seconds"]), size(taken["memory"])] if taken else ["", ""]
        rows.append(cells)
    heads = ["model, NF4", "stored", "merge", "time, predicted", "memory, predicted", "time, measured", "memory, measured"]
    text = "Predicted by `--dry-run`" + (". " if is_measured else "; nobody ran these. ")
    return table(heads[: 7 if is_measured else 5], rows) + f"\n{text}{data['program']}, at the pace of {data['machine']}, {data['date']}.\n"


def many(data):
    """A merge in parts that was planned only: what one of the machines does, the one that does most."""
    # What is assumed, not measured: 25 Gbit/s.
    line = 25e9 / 8
    names = {"attention": "attention and shared experts", "all": "all experts too"}
    rows = []
    for row in data["rows"]:
        cells = [names[row["adapter"]], row["merge"], size(row["read"]), f"{row['reads']:,}", size(row["written"]), size(row["memory"])]
        rows.append([*cells, seconds(row["seconds"]), seconds((row["read"] + row["written"]) / line)])
    stored, nodes = data["rows"][0]["bytes"], data["nodes"]
    heads = ["adapter on", "merge", "read", "requests", "written", "memory", "time, planned", "line"]
    text = f"\nThe base has {size(stored)}. The part that does most of {nodes}, on {data['threads']} threads; `time, planned` counts what is copied at the pace of the disk it was measured on, and what is merged at that of the threads; `line` reading and writing the same at 25 Gbit/s. "
    text += f"`finish` reads and writes all of it on one machine: {seconds(2 * stored / line)} at that rate.\n"
    return table(heads, rows) + text + f"{data['program']}, planned, not run; rates of {data['machine']}; {data['date']}.\n"


def stores(data):
    """A merge from a bucket into one, beside a copy through the same server."""
    rows = []
    for row in data["rows"]:
        link = "as fast as this machine is" if row["link"] == "none" else f"{row['link'].removesuffix('gbit')} Gbit/s"
        if row["server"] == "moto":
            # Its share of the processors is what the merge has to share them with.
            used = row["merge_server_cpu_seconds"] / (row["merge_server_cpu_seconds"] + row["own_cpu_seconds"])
            link = f"moto, which takes {100 * used:.0f} % of the processors' time"
        took = [seconds(row["copy_seconds"]), seconds(row["merge_seconds"]), f"{row['ratio']:.2f}"]
        base = f"{row['base'].upper()}, {size(row['bytes'])}"
        rows.append([base, link, f"`--rounding {row['rounding']}`", *took, f"{row['peak_mib']} MiB", f"{row['disk_mb']:.0f} MB"])
    heads = ["base", "line, both ways together", "merge", "copy", "time", "to the copy", "memory", "written to disks"]
    text = f"\nA Llama of {data['model'].upper()} with a LoRA of rank 16 from a bucket into one, medians of {data['rounds']} rounds. "
    return table(heads, rows) + text + f"{data['program']}, {data['machine']}, which also run the server; {data['date']}.\n"


def losses(data):
    """What the demo's weights lose, by method: means over weights."""
    rows = []
    for name in sorted(data["demo_losses"], key=lambda name: mean(data["demo_losses"][name], "kept_output")):
        weights = data["demo_losses"][name]
        cells = [f"{mean(weights, field):.{digits}f}" for field, digits in (("survival", 3), ("noise", 2), ("kept_output", 3), ("noise_output", 2))]
        rows.append([f"`{name}`", *cells])
    return table(["demo model, mean over weights", "survival", "noise", "kept output", "noise output"], rows)


def formats(data):
    """What is left of an adapter in bases that each format's own library quantized."""
    rows = []
    for name, row in sorted(data["rows"].items(), key=lambda pair: pair[1]["bytes"]):
        kept = [f"{share(row[way]['gain_kept'])}, {row[way]['kl']:.4f}" for way in ("nearest", "fast", "default")]
        rows.append([f"`{name}`", f"{row['bytes'] / 1e6:.1f} MB", *kept, seconds(row["default"]["cpu_seconds"]), row["loads"]])
    heads = ["format", "size", "`--rounding nearest`", "`--fast`", "default", "CPU time, default", "who loads it"]
    text = f"{data['windows']} windows of {data['context']} tokens that neither training nor calibration saw"
    text += f", calibrated on {data['tokens']} tokens" if data["tokens"] else ""
    return table(heads, rows) + f"\n{data['title']}; gain kept, and KL to the adapter apart; {text}. {data['program']}, {data['date']}.\n"


def gguf(data):
    """An adapter merged into GGUF files, by qmerge and by llama.cpp: a table for each model."""
    names = {
        "default": "`qmerge merge`", "calibrate": "`qmerge merge --calibrate TEXT`", "fast": "`qmerge merge --fast`", "nearest": "`qmerge merge --rounding nearest`",
        "promote": "`qmerge merge --promote auto`", "export": "`llama-export-lora`: F16", "quantized": "… then `llama-quantize`, to the types before",
    }
    heads = ["merge", "size", "gain kept", "KL to the adapter apart", "perplexity", "in llama.cpp", "same tokens", "CPU time"]
    text = ""
    for model in data["models"].values():
        rows = []
        for name in (name for name in names if name in model["rows"]):
            row = model["rows"][name]
            same = f"{row['same']:.1f}, {row['along']:.1f} of {row['continued']:.0f}"
            cells = [names[name], f"{row['bytes'] / 1e6:.1f} MB", share(row["gain_kept"]), f"{row['kl']:.4f} ± {row['kl_se']:.4f}", f"{row['perplexity']:.3f}"]
            rows.append([*cells, f"{row['llama_perplexity']:.3f}", same, seconds(row["cpu_seconds"])])
        base = model["rows"]["base"]
        text += f"**{model['title']}**, {base['bytes'] / 1e6:.1f} MB; the base's KL is {base['kl']:.4f}, its perplexity {base['perplexity']:.3f}; {model['windows']} windows of {model['context']} tokens that were not trained on.\n\n"
        text += table(heads, rows) + "\n"
    return text + f"{data['program']}, llama.cpp {data['llama_cpp']}, {data['machine']}, {data['date']}.\n"


def itself(data):
    """How far llama.cpp is from itself on GGUF files, and qmerge from it."""
    names = {
        "moved": "each weight of the first norm moved by one step of f32", "one": "the prompt taken in token by token", "plain": "weights not repacked",
        "flash": "no flash attention", "qmerge": "`qmerge generate`", "qmerge_moved": "… beside itself, the first norm moved",
    }
    rows = []
    for model in data["models"].values():
        for name, words in names.items():
            row = model["rows"][name]
            same = f"{row['same']:.1f}" + (f", {row['along']:.1f}" if "along" in row else "")
            rows.append([model["title"] if name == "moved" else "", words, f"{row['kl']:.4f}" if "kl" in row else "", f"{row['perplexity']:.3f}" if "kl" in row else "", f"{same} of 24"])
    as_it_comes = ", ".join(f"{model['rows']['itself']['perplexity']:.3f}" for model in data["models"].values())
    one = next(iter(data["models"].values()))
    text = f"Perplexities as it comes: {as_it_comes}. Means over {one['windows']} windows of {one['context']} tokens, and {one['prompts']} prompts. {data['program']}, llama.cpp {data['llama_cpp']}, {data['date']}."
    return table(["model", "what differs", "KL", "perplexity", "same tokens"], rows) + f"\n{text}\n"


def adapters(data):
    """What is left of adapters of several methods in the base that they were trained on, by the ways that were measured of all."""
    heads = {"nearest": "`--rounding nearest`", "fast": "`--fast`", "default": "default"}
    ways = [way for way in heads if all(way in row for row in data["rows"].values())]
    has_peft = all("peft" in row for row in data["rows"].values())
    left = lambda row: f"{share(row['gain_kept'])}, {row['kl']:.4f}"
    rows = []
    for name, row in sorted(data["rows"].items()):
        own = ["no merge into NF4" if "refused" in row["peft"] else left(row["peft"])] if has_peft else []
        rows.append([name, f"{row['base_loss'] - row['apart_loss']:.3f}", *own, *[left(row[way]) for way in ways], seconds(row["default"]["cpu_seconds"])])
    columns = ["adapter", "gain", *(["PEFT `merge_and_unload`"] if has_peft else []), *[heads[way] for way in ways], "CPU time, default"]
    text = f"{data['steps']} steps of training each; {data['windows']} windows of {data['context']} tokens that neither training nor calibration saw"
    return table(columns, rows) + f"\n{data['title']}; gain kept, and KL to the adapter apart; gain is that of the adapter apart, in nats; {text}. {data['program']}, {data['date']}.\n"


def programs(data):
    """What is left of adapters by the program before a change, and after it."""
    rows = []
    for row in data["rows"]:
        left = [f"{row[way]['kl']:.4f} ± {row[way]['kl_se']:.4f}, {share(row[way]['gain_kept'])}" for way in ("before", "after")]
        rows.append([row["model"], row["adapter"], row["text"], f"{row['base_kl']:.3f}", *left, str(row["windows"])])
    heads = ["model", "adapter", "calibrated on text", "KL of the base", "before", "after", "windows"]
    return table(heads, rows) + f"\nKL to the adapter apart with its standard error, and gain kept; windows of 512 tokens that neither training nor calibration saw. {data['date']}.\n"


def arithmetic(data):
    """Arithmetic on adapters of a model of 1 B, and what others take for one of its layers."""
    rows = []
    for row in sorted(data["rows"], key=lambda row: (-row["layers"], row["what"])):
        rows.append([row["what"], str(row["layers"]), seconds(row["seconds"]), seconds(row["cpu_seconds"]), f"{row['mib']} MiB"])
    return table(["what", "layers", "time", "CPU time", "peak memory"], rows) + f"\n{data['program']}, {data['machine']}, {data['date']}.\n"


def mean(weights, field):
    return sum(weight[field] for weight in weights) / len(weights)


KINDS = {"door": door, "merges": merges, "methods": methods, "cost": cost, "many": many, "stores": stores, "losses": losses, "formats": formats, "gguf": gguf, "itself": itself, "adapters": adapters, "arithmetic": arithmetic, "programs": programs}


def main():
    check = "--check" in sys.argv[1:]
    texts = [ROOT / "README.md", *sorted((ROOT / "docs/src").rglob("*.md"))]
    fill = lambda block: block[1] + KINDS[block[2]](figures(block[3])) + block[4]
    one = lambda found: found[1] + figure(found[2], found[3], found[4]) + found[5]
    wanted = {path: FIGURE.sub(one, BLOCK.sub(fill, path.read_text())) for path in texts}
    stale = [path for path, text in wanted.items() if path.read_text() != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)} {'is not what the figures say' if check else 'written'}")
        if not check:
            path.write_text(wanted[path])
    return 1 if check and stale else 0


sys.exit(main())
