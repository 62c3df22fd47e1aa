#!/usr/bin/env python3
"""A run with nothing to do, against make, in turn: 100 and 1,000 stages.

    cargo build --release && python3 benches/noop.py [TURNS]

Prints the median wall time of each, start of the process included, and their ratio; also the time that recant spends on
an executed trivial stage, its syncs to disk included. Needs make; without it only recant is timed.
"""
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

TURNS = int(sys.argv[1]) if len(sys.argv) > 1 else 21
RECANT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "target", "release", "recant")


def recipe(stages):
    """Digits, an original, an oracle, and `nothing` with its evaluation as often as it takes; a table at the end."""
    count = (stages - 6) // 2
    text = 'recipe = 1\n[stages.images]\nkind = "dataset"\nsource = "digits"\n'
    text += '[stages.split]\nkind = "split"\ndata = "images"\nforget = { count = 100 }\n'
    train = 'arch = { name = "mlp", hidden = [4] }\nepochs = 1\nbatch = 512\n'
    text += '[stages.original]\nkind = "train"\ndata = "images"\n' + train
    text += '[stages.oracle]\nkind = "train"\ndata = "split"\non = "retain"\n' + train
    for i in range(count):
        text += f'[stages.m{i}]\nkind = "unlearn"\nmethod = "nothing"\nmodel = "original"\ndata = "split"\nseed = {i}\n'
    models = ", ".join(f'"m{i}"' for i in range(count))
    text += f'[stages.table]\nkind = "compare"\ndata = "split"\nreference = "oracle"\nmodels = [{models}]\n'
    return text + 'metrics = ["accuracy"]\ngap = ["accuracy.forget"]\n'


def makefile(stages):
    """The same shape: two chains of fan-out from one source, gathered at the end."""
    count = (stages - 6) // 2
    gathered = " ".join(f"e{i}" for i in range(count))
    text = f"table: {gathered} eo\n\ttouch table\nimages:\n\ttouch images\nsplit: images\n\ttouch split\n"
    text += "original: images\n\ttouch original\noracle: split\n\ttouch oracle\neo: oracle split\n\ttouch eo\n"
    for i in range(count):
        text += f"m{i}: original split\n\ttouch m{i}\ne{i}: m{i} split\n\ttouch e{i}\n"
    return text


def timed(command, folder):
    begun = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return 1000 * (time.perf_counter() - begun)


for stages in (100, 1000):
    with tempfile.TemporaryDirectory() as folder:
        open(os.path.join(folder, "r.toml"), "w").write(recipe(stages))
        open(os.path.join(folder, "Makefile"), "w").write(makefile(stages))
        ours = [RECANT, "run", "r.toml", "--store", "store", "--quiet"]
        first = timed(ours, folder)
        print(f"{stages} stages: first run {first:.0f} ms, {first / stages:.2f} ms a stage")
        theirs = ["make", "-s"] if shutil.which("make") else None
        if theirs:
            timed(theirs, folder)
        pairs = []
        for _ in range(TURNS):
            pairs.append((timed(ours, folder), timed(theirs, folder) if theirs else float("nan")))
        recant, make = (statistics.median(times) for times in zip(*pairs))
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        print(f"{stages} stages, nothing to do: recant {recant:.1f} ms, make {make:.1f} ms, ratio {ratio:.2f}")
