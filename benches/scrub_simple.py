#!/usr/bin/env python3
"""A whole experiment against PyTorch and scikit-learn, both cold: benches/scrub_simple.toml.

    python3 benches/scrub_simple.py --data DIR [--turns 2] [--jobs 1] [--precision f32] [--json]

DIR is a data folder of recant that holds Fashion-MNIST. Runs `recant run` into a fresh store and
benches/scrub_simple_torch.py in turn: the same recipe, which the Python side reads from `recant show`, so that both have the
same numbers of images, epochs, steps and attack points. Prints seconds of each phase (medians over turns) and what
both measured; PyTorch runs in the mode whose training step was the fastest on this machine, recant in the precision of that
mode if not told otherwise. With `--jobs 1` stages run one
after the other, so that phases can be told apart; recant's own default is as many as cores.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

from compare import HERE, PYTHON, ROOT, lines, torch_version

RECIPE = os.path.join(HERE, "scrub_simple.toml")
# stages that say what their network is
NETWORKS = ["original", "retrained"]
PHASES = ["data", "original", "retrained", "simple", "unlearned", "evaluate", "the rest", "all"]
CLOSE = {"accuracy.forget": 5.0, "accuracy.retain": 5.0, "accuracy.test": 5.0}


def built():
    words = ["cargo", "build", "--release", "--locked", "--bin", "recant", "--message-format", "json"]
    for line in lines(words):
        if line.get("executable") and line["target"]["name"] == "recant":
            return line["executable"]
    raise SystemExit("cargo built no recant")


def fashion(data):
    """The folder with Fashion-MNIST's files."""
    for folder, _, files in os.walk(data):
        if "train-images-idx3-ubyte.gz" in files and "fashion" in folder.lower():
            return folder
    raise SystemExit(f"no Fashion-MNIST under {data}: recant fetch fashion_mnist --data {data}")


def phase_of(stage):
    if stage in ("images", "split"):
        return "data"
    return "evaluate" if stage.startswith("evaluate(") else stage


def ours(program, options, precision):
    """Seconds of each phase, numbers of each model and the attack's size, of a run into a fresh store."""
    with tempfile.TemporaryDirectory() as store:
        words = [program, "run", RECIPE, "--json", "--offline", "--store", store, "--data", options.data]
        words += ["--device", "cpu", "--jobs", str(options.jobs)]
        for stage in NETWORKS:
            words += ["--set", f"stages.{stage}.arch.precision={precision}"]
        begun = time.perf_counter()
        events = lines(words)
        whole = time.perf_counter() - begun
    phases, table = dict.fromkeys(PHASES[:-2], 0.0), None
    for event in events:
        if event["event"] == "finished":
            phase = phase_of(event["stage"])
            if phase in phases:
                phases[phase] += event["seconds"]
        elif event["event"] == "table":
            table = event["table"]
    if table is None:
        raise SystemExit("recant run printed no table")
    names = [column["name"] for column in table["columns"]]
    numbers = {row["name"]: dict(zip(names, row["values"])) for row in table["rows"]}
    found = re.search(r"SVC trained on (\d+) retain", " ".join(table["notes"]))
    if not found:
        raise SystemExit(f"the table does not say what its attacks learned from: {table['notes']}")
    return rounded(phases, whole), numbers, int(found.group(1))


def theirs(settings, options, mode, shadows):
    words = [PYTHON, os.path.join(HERE, "scrub_simple_torch.py"), fashion(options.data), "--shadows", str(shadows)]
    words += ["--mode", mode] if mode else ["--pick"]
    begun = time.perf_counter()
    done = subprocess.run(words, input=settings, capture_output=True, text=True, check=False)
    whole = time.perf_counter() - begun
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    if not mode:
        return found
    return rounded(found["phases"], whole), found["numbers"]


def rounded(phases, whole):
    """With the rest, start of the process among it, and the whole."""
    rest = whole - sum(phases.values())
    return {**phases, "the rest": rest, "all": whole}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", default=os.environ.get("RECANT_DATA"), help="a data folder with Fashion-MNIST")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--mode", help="PyTorch's mode, in place of the fastest")
    parser.add_argument("--precision", choices=["f32", "bf16"], help="recant's, in place of that of PyTorch's mode")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.data:
        raise SystemExit("say where Fashion-MNIST is: --data DIR")
    if not torch_version():
        raise SystemExit(f"{PYTHON} has no PyTorch: set RECANT_PYTHON")
    program = built()
    settings = subprocess.run([program, "show", RECIPE], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    mode = options.mode or theirs(settings, options, None, 1)["mode"]
    precision = options.precision or mode.split()[0]
    mine, other = [], []
    for turn in range(options.turns):
        phases, numbers, shadows = ours(program, options, precision)
        mine.append(phases)
        phases, twins = theirs(settings, options, mode, shadows)
        other.append(phases)
        print(f"turn {turn + 1}: recant {mine[-1]['all']:.1f} s, PyTorch {phases['all']:.1f} s", file=sys.stderr)
    table = []
    for phase in PHASES:
        pair = [statistics.median(turn[phase] for turn in side) for side in (mine, other)]
        ratios = [b[phase] / a[phase] for a, b in zip(mine, other) if a[phase] > 0]
        # of stages side by side the sum is more than the whole: then there is no rest
        ratio = statistics.median(ratios) if ratios else None
        table.append({"phase": phase, "recant": pair[0], "pytorch": pair[1], "ratio": ratio})
    far = []
    for model, found in twins.items():
        for name, limit in CLOSE.items():
            if abs(found[name] - numbers[model][name]) > limit:
                far.append(f"{model} {name}: {numbers[model][name]:.2f} here, {found[name]:.2f} in PyTorch")
    if options.json:
        record = {"mode": mode, "precision": precision, "jobs": options.jobs, "shadows": shadows, "phases": table}
        print(json.dumps({**record, "recant": numbers, "pytorch": twins, "apart": far}))
    else:
        print(f"PyTorch {torch_version()} in `{mode}`, {options.turns} turns, recant in {precision} with --jobs {options.jobs}")
        print(f"{'phase':<12}{'recant s':>10}{'PyTorch s':>11}{'faster by':>11}")
        for line in table:
            ratio = "-" if line["ratio"] is None else f"{line['ratio']:.2f}"
            print(f"{line['phase']:<12}{line['recant']:>10.2f}{line['pytorch']:>11.2f}{ratio:>11}")
        print(f"\n{'':<11}{'number':<22}{'recant':>9}{'PyTorch':>9}    attacks learn from {shadows} and {shadows} images")
        for model, found in twins.items():
            for name, value in found.items():
                print(f"{model:<11}{name:<22}{numbers[model][name]:>9.2f}{value:>9.2f}")
    if far:
        raise SystemExit("accuracies are more than 5 points apart:\n" + "\n".join(far))


if __name__ == "__main__":
    main()
