#!/usr/bin/env python3
"""Steps of training and evaluation against PyTorch, in turn: the same network, batch, optimiser and machine.

    python3 benches/compare.py                  a few rows at batch 64
    python3 benches/compare.py --all            every row at batches 16, 64 and 256, torch.compile among PyTorch's modes
    python3 benches/compare.py --rows scrub,dcgan --batch 16,64 --turns 5 --json
    python3 benches/compare.py --device cuda:0 --batch 64,1024      on a GPU (see benches/gpu.sh)

Builds benches/steps.rs and runs it and benches/torch_twins.py alternately. In the first turn PyTorch runs in all modes;
then only the best f32 mode of each measurement goes on, and the best of all. Recant runs in f32 and in bf16. Ratios are
images a second of recant over PyTorch's in the same turn, f32 over its best f32 mode and bf16 over its best of all, medians over turns, with the least and the largest: above 1 recant is faster. docs/benchmarks.md says more.

PyTorch is that of $RECANT_PYTHON, else of the Python that runs this; without one only recant is timed.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
PYTHON = os.environ.get("RECANT_PYTHON") or sys.executable
ROWS = ["resnet18", "resnet18_pool", "resnet18_imagenet", "resnet50", "allcnn"]
ROWS += ["dcgan", "opengan", "simclr", "scrub", "bad_teaching"]
FEW = ["resnet18", "scrub", "opengan"]
EAGER = ["f32", "f32 channels_last", "bf16 channels_last"]
PRECISIONS = ["f32", "bf16"]
COMPILED = ["f32 compile", "f32 channels_last compile", "bf16 channels_last compile"]


def lines(words):
    """The JSON objects that a program prints; what it has to complain about goes to our stderr."""
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def built(device):
    """The program of benches/steps.rs."""
    words = ["cargo", "bench", "--locked", "--no-run", "--bench", "steps", "--message-format", "json"]
    words += ["--features", "cuda"] if device.startswith("cuda") else []
    for line in lines(words):
        if line.get("executable") and line["target"]["name"] == "steps":
            return line["executable"]
    raise SystemExit("cargo built no program of benches/steps.rs")


def torch_version():
    words = [PYTHON, "-c", "import torch; print(torch.__version__)"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def best(found, wanted):
    """The fastest line among those whose mode begins with `wanted`."""
    return max((one for one in found if one["mode"].startswith(wanted)), key=lambda one: one["images_per_second"])


def measure(row, batch, program, options, modes):
    """Both sides in turn; gives a record for each of `train` and `eval`."""
    common = [row, "--batch", str(batch), "--width", str(options.width), "--seconds", str(options.seconds)]
    common += ["--device", options.device]
    records, going, errors = {}, modes, []
    for turn in range(options.turns):
        def ours():
            return [line for precision in PRECISIONS for line in lines([program, *common, "--precision", precision])]

        def theirs():
            return lines([PYTHON, os.path.join(HERE, "torch_twins.py"), *common, "--modes", ",".join(going)])

        if not modes:
            mine, other = ours(), []
        elif turn % 2 == 0:
            mine, other = ours(), theirs()
        else:
            other, mine = theirs(), ours()
        errors += [one for one in other if "error" in one]
        for one in mine:
            twins = [twin for twin in other if twin.get("what") == one["what"]]
            if modes and not twins:
                raise SystemExit(f"{row}: PyTorch measured nothing: {errors}")
            for twin in twins:
                if twin["parameters"] != one["parameters"]:
                    sizes = f"{one['parameters']} parameters here, {twin['parameters']} in PyTorch"
                    raise SystemExit(f"{row}: the networks are not twins: {sizes}")
            first = {"row": row, "batch": batch, "what": one["what"], "width": options.width}
            first = {**first, "parameters": one["parameters"], "turns": []}
            record = records.setdefault(one["what"], first)
            if one["precision"] == PRECISIONS[0]:
                record["turns"].append({"pytorch": twins})
            record["turns"][-1][one["precision"]] = one
        if modes:
            firsts = [record["turns"][0]["pytorch"] for record in records.values()]
            keep = {best(twins, wanted)["mode"] for twins in firsts for wanted in ("f32", "")}
            going = [mode for mode in modes if mode in keep]
    for record in records.values():
        summarise(record, bool(modes))
        record["errors"] = sorted({f"{one['mode']}: {one['error']}" for one in errors})
    return list(records.values())


def summarise(record, with_torch):
    middle = statistics.median
    for precision in PRECISIONS:
        mine = [turn[precision] for turn in record["turns"]]
        record[precision] = {"images_per_second": middle(one["images_per_second"] for one in mine)}
        record[precision]["peak_bytes"] = mine[-1]["peak_bytes"]
        record[precision]["gflops"] = mine[0]["gflops"] and middle(one["gflops"] for one in mine)
    if not with_torch:
        return
    for precision, name, wanted in (("f32", "best_f32", "f32"), ("bf16", "best", "")):
        mine = [turn[precision] for turn in record["turns"]]
        mode = best(record["turns"][0]["pytorch"], wanted)["mode"]
        twins = [one for turn in record["turns"] for one in turn["pytorch"] if one["mode"] == mode]
        if len(twins) != len(mine):
            raise SystemExit(f"{record['row']}: PyTorch's mode `{mode}` worked in {len(twins)} of {len(mine)} turns")
        ratios = [one["images_per_second"] / twin["images_per_second"] for one, twin in zip(mine, twins)]
        speed = middle(twin["images_per_second"] for twin in twins)
        record[name] = {"mode": mode, "images_per_second": speed, "ratio": middle(ratios), "ratios": ratios}
        record[name]["peak_bytes"] = twins[-1]["peak_bytes"]


def shown(record):
    """A line of the table."""

    def mega(side):
        return f"{side['peak_bytes'] / 1e6:.0f}" if side["peak_bytes"] else "-"

    cells = [record["row"], str(record["batch"]), record["what"]]
    for precision, name in (("f32", "best_f32"), ("bf16", "best")):
        cells.append(f"{record[precision]['images_per_second']:.1f}")
        if name in record:
            side = record[name]
            low, high = min(side["ratios"]), max(side["ratios"])
            ratio = f"{side['ratio']:.2f} ({low:.2f} to {high:.2f})"
            cells += [f"{side['images_per_second']:.1f}", side["mode"], ratio]
    counts = [record[precision]["gflops"] for precision in PRECISIONS]
    cells.append(", ".join(f"{count:.0f}" if count else "-" for count in counts))
    cells.append(", ".join(mega(record[precision]) for precision in PRECISIONS))
    if "best" in record:
        cells.append(f"{mega(record['best_f32'])}, {mega(record['best'])}")
    return cells


def table(records, with_torch):
    head = ["row", "batch", "what", "recant f32"]
    if with_torch:
        head += ["PyTorch f32", "mode", "ratio", "recant bf16", "PyTorch best", "mode", "ratio", "GFLOP/s", "peak MB", "PyTorch's"]
    else:
        head += ["recant bf16", "GFLOP/s", "peak MB"]
    rows = [head, *(shown(record) for record in records)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", help=f"some of {','.join(ROWS)}")
    parser.add_argument("--batch", help="batches: 16,64,256")
    parser.add_argument("--all", action="store_true", help="every row, all three batches, torch.compile too")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="try torch.compile")
    parser.add_argument("--modes", help="PyTorch's, in place of all: `f32,f32 channels_last` where bf16 is emulated")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each measurement")
    parser.add_argument("--width", type=int, default=64, help="of every network's first layer")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--program", help="benches/steps.rs, built already")
    parser.add_argument("--json", action="store_true", help="one JSON object a line in place of the table")
    options = parser.parse_args()
    rows = options.rows.split(",") if options.rows else ROWS if options.all else FEW
    unknown = [row for row in rows if row not in ROWS]
    if unknown:
        raise SystemExit(f"there is no row `{unknown[0]}`: expected some of {', '.join(ROWS)}")
    batches = [int(size) for size in (options.batch or ("16,64,256" if options.all else "64")).split(",")]
    compiled = options.all if options.compile is None else options.compile
    version = torch_version()
    modes = options.modes.split(",") if options.modes else EAGER + (COMPILED if compiled else [])
    odd = [mode for mode in modes if mode not in EAGER + COMPILED]
    if odd or not any(mode.startswith("f32") for mode in modes):
        what = f"there is no mode `{odd[0]}`" if odd else "there is no mode in f32 among them"
        raise SystemExit(f"{what}: expected some of {', '.join(EAGER + COMPILED)}")
    modes = modes if version else []
    program, records = options.program or built(options.device), []
    side = f"PyTorch {version}" if version else f"no PyTorch in {PYTHON}: only recant is timed"
    print(f"{side}; {options.device}, {os.cpu_count()} cores, width {options.width}, {options.turns} turns", file=sys.stderr)
    for row in rows:
        for batch in batches:
            for record in measure(row, batch, program, options, modes):
                records.append(record)
                text = json.dumps(record) if options.json else "  ".join(shown(record))
                print(text, file=sys.stdout if options.json else sys.stderr, flush=True)
    if not options.json:
        print(table(records, bool(modes)))
        failed = sorted({(record["row"], error) for record in records for error in record["errors"]})
        for row, error in failed:
            print(f"{row}: {error}")


if __name__ == "__main__":
    main()
