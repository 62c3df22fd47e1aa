#!/usr/bin/env python3
"""Training steps and evaluation against PyTorch, in turn: the same network, batch and machine.

    python3 benches/compare.py [--turns N] [NAME ..]

NAME is a label of benches/train_step.rs ("resnet18", "resnet18 width 16", "resnet18 cifar_pool width 32", "allcnn").
Runs `cargo bench --bench train_step NAME` and PyTorch alternately, prints images a second of each turn and the median of
the ratios. PyTorch runs where this Python can import torch: in f32, NCHW and channels_last, the better one of each turn
counts. Both do a plain SGD step and have all cores.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))


def network(label):
    import torch.nn as nn

    def conv(i, o, k=3, s=1, p=1, bias=False):
        return nn.Conv2d(i, o, k, stride=s, padding=p, bias=bias)

    class Block(nn.Module):
        def __init__(self, i, o, s):
            super().__init__()
            self.conv1, self.bn1 = conv(i, o, s=s), nn.BatchNorm2d(o)
            self.conv2, self.bn2 = conv(o, o), nn.BatchNorm2d(o)
            self.relu = nn.ReLU(inplace=True)
            short = s != 1 or i != o
            self.down = nn.Sequential(conv(i, o, 1, s, 0), nn.BatchNorm2d(o)) if short else nn.Identity()

        def forward(self, x):
            y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            return self.relu(y + self.down(x))

    if label.startswith("resnet18"):
        found = re.search(r"width (\d+)", label)
        width = int(found.group(1)) if found else 64
        layers = [conv(3, width), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        if "cifar_pool" in label:
            layers.append(nn.MaxPool2d(3, 2, 1))
        channels = width
        for stage in range(4):
            for block in range(2):
                out = width << stage
                layers.append(Block(channels, out, 2 if stage > 0 and block == 0 else 1))
                channels = out
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    raise SystemExit(f"no PyTorch twin of `{label}` here")


def pytorch(label, batch):
    """Images a second, of the training step and of evaluation."""
    import torch

    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    found = {}
    for form in (torch.contiguous_format, torch.channels_last):
        model = network(label).to(memory_format=form)
        x = torch.randn(batch, 3, 32, 32).to(memory_format=form)
        y = torch.arange(batch) % 10
        optimiser = torch.optim.SGD(model.parameters(), lr=0.001)

        def step():
            optimiser.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()

        def evaluate():
            with torch.inference_mode():
                model(x)

        for name, call in (("train", step), ("eval", evaluate)):
            model.train(name == "train")
            call()
            times, begun = [], time.perf_counter()
            while time.perf_counter() - begun < 4 or len(times) < 3:
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
            rate = batch / statistics.median(times)
            found[name] = max(found.get(name, 0), rate)
    peak = open("/proc/self/status").read().split("VmHWM:")[1].split("\n")[0].strip()
    print(json.dumps({**found, "peak": peak}))


def ours(label):
    words = ["cargo", "bench", "--quiet", "--bench", "train_step", "--", label]
    text = subprocess.run(words, cwd=os.path.dirname(HERE), check=True, capture_output=True, text=True).stdout
    found = re.search(r"batch +(\d+) +train +([\d.]+) img/s .*eval +([\d.]+) +peak +(.*)", text)
    if not found:
        raise SystemExit(f"train_step knows no `{label}`: {text}")
    batch, train, evaluate, peak = found.groups()
    return int(batch), {"train": float(train), "eval": float(evaluate), "peak": peak.strip()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--torch", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", default=["resnet18"])
    options = parser.parse_args()
    if options.torch:
        return pytorch(options.names[0], options.torch)
    try:
        import torch

        print(f"PyTorch {torch.__version__}, {os.cpu_count()} cores")
        there = True
    except ImportError:
        print("PyTorch is not there: only recant is timed")
        there = False
    for label in options.names:
        ratios = {"train": [], "eval": []}
        for turn in range(options.turns):
            batch, mine = ours(label)
            line = f"{label}, batch {batch}: recant train {mine['train']:.1f}, eval {mine['eval']:.1f}, peak {mine['peak']}"
            if there:
                words = [sys.executable, os.path.abspath(__file__), "--torch", str(batch), label]
                theirs = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
                line += f"; PyTorch train {theirs['train']:.1f}, eval {theirs['eval']:.1f}, peak {theirs['peak']}"
                for name in ratios:
                    ratios[name].append(mine[name] / theirs[name])
            print(line, flush=True)
        if there:
            medians = ", ".join(f"{name} {statistics.median(values):.2f}" for name, values in ratios.items())
            print(f"{label}: recant / PyTorch, median of {options.turns} turns: {medians}")


main()
