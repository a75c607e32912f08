"""What a change of the program does to what is left of an adapter: the same merge by two builds of qmerge, compared on a text, as JSON.

    programs.py BEFORE AFTER OUT.json --model NAME BASE --adapter NAME DIR TEXT [--own-text] [--calibrate TEXT] [--fast] [--windows 4] [--folder DIR]

BEFORE and AFTER are programs. With --own-text the merge is calibrated on what the model writes itself, with --calibrate on that text, with --fast on few of its tokens; all may be given. A row is added to
OUT.json for each; a merge of these names that stands in --folder already is taken as it is, so a folder is for one pair of programs and one text. benches/figures/write.py puts OUT.json into the book.
"""

import argparse
import datetime
import json
import pathlib
import subprocess
import tempfile


def run(*command):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def main():
    parser = argparse.ArgumentParser()
    for name in ("before", "after", "out"):
        parser.add_argument(name)
    parser.add_argument("--model", nargs=2, required=True)
    parser.add_argument("--adapter", nargs=3, required=True)
    parser.add_argument("--own-text", action="store_true")
    parser.add_argument("--calibrate")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--folder")
    args = parser.parse_args()
    if not (args.own_text or args.calibrate or args.fast):
        parser.error("--own-text, --calibrate or --fast")
    with tempfile.TemporaryDirectory() as scratch:
        compare(args, pathlib.Path(args.folder or scratch), pathlib.Path(args.out))


def compare(args, folder, out):
    (model, base), (adapter, source, text) = args.model, args.adapter
    texts = [(0, "its own", [])] if args.own_text else []
    texts += [(1, "like the task", ["--calibrate", args.calibrate])] if args.calibrate else []
    texts += [(2, "its own, few tokens", ["--fast"])] if args.fast else []
    merged = []
    for number, _, options in texts:
        for way, program in (("before", args.before), ("after", args.after)):
            target = folder / f"{model}-{adapter}-{number}-{way}".replace(" ", "_")
            merged.append(target)
            if not target.exists():
                run(program, "merge", "--base", base, "--adapter", source, "-o", target, "--measure", "never", *options)
    command = [args.after, "compare", "--base", base, "--adapter", source, *[part for target in merged for part in ("--merged", target)]]
    models = json.loads(run(*command, "--text", text, "--windows", args.windows, "--continuation", 0, "--json"))["models"]
    found = json.loads(out.read_text()) if out.exists() else {"rows": []}
    for at, (_, name, _) in enumerate(texts):
        before, after = models[2 + 2 * at : 4 + 2 * at]
        row = {"model": model, "adapter": adapter, "text": name, "windows": args.windows, "base_kl": models[0]["kl"]}
        row.update({way: {key: model[key] for key in ("kl", "kl_se", "gain_kept", "top1")} for way, model in (("before", before), ("after", after))})
        same = lambda other: all(other[key] == row[key] for key in ("model", "adapter", "text"))
        found["rows"] = [other for other in found["rows"] if not same(other)] + [row]
    found["date"] = str(datetime.date.today())
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
