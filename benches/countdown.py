"""How true the progress bar's countdown is: records what a command shows on a terminal, against when it ended.

    python3 benches/countdown.py [--log FILE] -- qmerge merge --base B --adapter A -o OUT

Prints the wall time, processor time and peak memory, and for each tenth of the run what the bar said, the time that it said was left, and the ratio to the
time that really was.
"""

import os
import pty
import re
import select
import sys
import time

LEFT = re.compile(r"(?:(\d+) h )?(?:(\d+) min )?(?:(\d+) s )?left")


def seconds(text):
    """The time left that a line names, if it does."""
    found = LEFT.search(text)
    if not found or not any(found.groups()):
        return None
    hours, minutes, rest = (int(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + rest


def main():
    at = sys.argv.index("--")
    command, options = sys.argv[at + 1 :], sys.argv[1:at]
    start = time.monotonic()
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.environ["COLUMNS"] = "120"
        os.execvp(command[0], command)
    seen = []
    text = ""
    while True:
        ready, _, _ = select.select([terminal], [], [], 0.2)
        if not ready:
            continue
        try:
            some = os.read(terminal, 65536)
        except OSError:
            break
        if not some:
            break
        text = (text + some.decode(errors="replace"))[-20000:]
        lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).strip() for line in re.split(r"[\r\n]", text)]
        lines = [line for line in lines if " left" in line or "%" in line]
        if lines:
            seen.append((time.monotonic() - start, lines[-1]))
    _, status, usage = os.wait4(pid, 0)
    end = time.monotonic() - start
    if options[:1] == ["--log"]:
        with open(options[1], "w") as log:
            log.writelines(f"{when:8.2f} {line}\n" for when, line in seen)
    print(f"status {status >> 8}, {end:.1f} s, user {usage.ru_utime:.1f} s, system {usage.ru_stime:.1f} s, peak {usage.ru_maxrss * 1024 / 1e6:.1f} MB")
    worst = 1.0
    for when, line in seen:
        said, truth = seconds(line), end - when
        # A second is the finest that it says.
        if said is not None and when > 0.1 * end and truth > 2:
            worst = max(worst, (said + 0.5) / truth, truth / (said + 0.5))
    for tenth in range(1, 10):
        line = [line for when, line in seen if when <= end * tenth / 10][-1:] or ["(nothing)"]
        said = seconds(line[0])
        ratio = "" if said is None else f"{said / (end * (1 - tenth / 10)):.2f}"
        print(f"{tenth * 10:3} %  {ratio:>5}  {line[0]}")
    print(f"from a tenth on, until two seconds before the end: at most {worst:.2f} times too long or too short")


if __name__ == "__main__":
    main()
