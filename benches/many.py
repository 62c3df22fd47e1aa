#!/usr/bin/env python3
"""Independent small trainings side by side, against one after the other: benches/many.toml.

    python3 benches/many.py --data DIR [--jobs 1,2] [--width 16] [--precision f32] [--device cpu] [--turns 2] [--json]

DIR is a data folder of recant that holds Fashion-MNIST. Each turn runs the recipe once for each number of jobs, each time in a
fresh store where the images lie already, and counts models a minute; ratios are to the first number of jobs in the same turn, medians
over turns.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time

from compare import HERE
from scrub_simple import built

RECIPE = os.path.join(HERE, "many.toml")


def run(program, store, options, jobs, *targets):
    words = [program, "run", RECIPE, *targets, "--quiet", "--offline", "--device", options.device, "--jobs", str(jobs)]
    words += ["--store", store, "--data", options.data]
    words += ["--set", f"params.width={options.width}", "--set", f"params.precision={options.precision}"]
    begun = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr}")
    return time.perf_counter() - begun


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", default=os.environ.get("RECANT_DATA"), help="a data folder with Fashion-MNIST")
    parser.add_argument("--jobs", default="1,2")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--program", help="a recant that is built already")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.data:
        raise SystemExit("say where Fashion-MNIST is: --data DIR")
    numbers = [int(jobs) for jobs in options.jobs.split(",")]
    program = options.program or built()
    models = 8  # seeds of the recipe
    speeds = {jobs: [] for jobs in numbers}
    with tempfile.TemporaryDirectory() as folder:
        first = os.path.join(folder, "first")
        run(program, first, options, 1, "images")
        for turn in range(options.turns):
            for jobs in numbers if turn % 2 == 0 else reversed(numbers):
                store = os.path.join(folder, "store")
                shutil.copytree(first, store)
                speeds[jobs].append(60 * models / run(program, store, options, jobs))
                shutil.rmtree(store)
    lines = []
    for jobs in numbers:
        ratio = statistics.median(own / base for own, base in zip(speeds[jobs], speeds[numbers[0]]))
        lines.append({"jobs": jobs, "models_per_minute": statistics.median(speeds[jobs]), "ratio": ratio})
    if options.json:
        print(json.dumps({"width": options.width, "precision": options.precision, "device": options.device, "turns": options.turns, "jobs": lines}))
        return
    print(f"resnet18, width {options.width}, {options.precision}, {options.device}, {os.cpu_count()} cores, {options.turns} turns")
    for line in lines:
        print(f"{line['jobs']:>3} at once: {line['models_per_minute']:7.2f} models a minute, {line['ratio']:.2f}")


if __name__ == "__main__":
    main()
