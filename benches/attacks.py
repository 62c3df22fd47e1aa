#!/usr/bin/env python3
"""Membership attacks and t-SNE against scikit-learn, in turn: the same data and machine.

    python3 benches/attacks.py [--turns N] [--points N] [NAME ..]

NAME is confidence, entropy, correctness (one feature, 20,000 points), probabilities (10 features, 10,000 points) or tsne (128
features, 10,000 points); all of them, where none is given. Needs scikit-learn and safetensors. Both sides have all cores;
LIBSVM, behind scikit-learn's SVC, runs on one and keeps 200 MB of kernel rows.

The data are made up: softmax outputs of 10 classes whose true class stands out more for members than for strangers; ten
clouds for t-SNE. Of an attack it prints the seconds of each turn (training and 5,000 predictions), the ratio of medians, the
share of equal predictions, the largest difference of decision values and both numbers of steps. Of t-SNE the ratio, and for
both maps KL(P || Q) over scikit-learn's P and all pairs, trustworthiness (12 neighbours), and the share of the 30 nearest
neighbours that are still among the 30 nearest on the map.
"""
import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time

import numpy as np
from safetensors.numpy import load_file, save_file
from sklearn.manifold import TSNE, trustworthiness
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC

HERE = os.path.dirname(os.path.abspath(__file__))
ATTACKS = {
    "confidence": (20_000, lambda p, y: p[np.arange(len(y)), y][:, None]),
    "entropy": (20_000, lambda p, y: -(p * np.log(np.maximum(p, 1e-30))).sum(1)[:, None]),
    "correctness": (20_000, lambda p, y: (p.argmax(1) == y).astype(float)[:, None]),
    "probabilities": (10_000, lambda p, y: p),
}


def answers(rng, count, mean, spread):
    """Softmax outputs and labels of made-up images."""
    y = rng.integers(0, 10, count)
    z = rng.normal(size=(count, 10))
    z[np.arange(count), y] += rng.normal(mean, spread, count)
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True), y


def attack_data(name, points):
    rng = np.random.default_rng(0)
    feature = ATTACKS[name][1]
    sides = [("members", points // 2, 7, 2.5), ("strangers", points // 2, 5, 3.5), ("asked", 5_000, 5.5, 3)]
    return {side: np.ascontiguousarray(feature(*answers(rng, *how))) for side, *how in sides}


def map_data(points):
    rng = np.random.default_rng(0)
    centres = 0.7 * rng.normal(size=(10, 128))
    return {"x": 0.6 * rng.normal(size=(points, 128)) + centres[rng.integers(0, 10, points)]}


def ours(what, data):
    """What Recant's bench printed and made."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = os.path.join(folder, "given"), os.path.join(folder, "made")
        save_file(data, given)
        command = ["cargo", "bench", "--locked", "--bench", "attacks", "--", what, given, made]
        run = subprocess.run(command, cwd=os.path.dirname(HERE), capture_output=True, text=True)
        lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
        if run.returncode or not lines:
            raise SystemExit(run.stdout + run.stderr)
        return json.loads(lines[0]), load_file(made)["made"]


def attack(name, points, turns):
    data = attack_data(name, points)
    x = np.concatenate([data["members"], data["strangers"]])
    y = np.repeat([1, 0], [len(data["members"]), len(data["strangers"])])
    mine, theirs = [], []
    for _ in range(turns):
        line, decision = ours("svc", data)
        mine.append(line["seconds"])
        begun = time.perf_counter()
        svc = SVC(C=3.0, gamma=1.0 / x.shape[1]).fit(x, y)
        wanted = svc.decision_function(data["asked"])
        theirs.append(time.perf_counter() - begun)
    report(f"{name}, {len(x):,} x {x.shape[1]}", mine, theirs)
    equal = np.mean((decision > 0) == (wanted > 0))
    print(
        f"  equal predictions {equal:.4%} of {len(wanted):,}, decision values off by {np.abs(decision - wanted).max():.1e}, "
        f"steps {line['steps']:,} and {int(svc.n_iter_[0]):,}",
        flush=True,
    )


def tsne(points, turns):
    data = map_data(points)
    mine, theirs = [], []
    for _ in range(turns):
        line, places = ours("tsne", data)
        mine.append(line["seconds"])
        begun = time.perf_counter()
        wanted = TSNE(perplexity=30, n_jobs=-1, random_state=0).fit_transform(data["x"])
        theirs.append(time.perf_counter() - begun)
    report(f"tsne, {points:,} x 128", mine, theirs)
    p = joint(data["x"])
    for name, y in [("recant", places), ("scikit-learn", wanted.astype(float))]:
        trust = trustworthiness(data["x"], y, n_neighbors=12)
        kept = preserved(data["x"], y)
        print(f"  {name:12}  KL {divergence(p, y):.4f}  trustworthiness {trust:.4f}  neighbours kept {kept:.4f}", flush=True)


def joint(x):
    """scikit-learn's own P, sparse."""
    from sklearn.manifold._t_sne import _joint_probabilities_nn

    near = NearestNeighbors(n_neighbors=91).fit(x).kneighbors_graph(mode="distance")
    near.data **= 2
    return _joint_probabilities_nn(near, 30, 0).tocoo()


def divergence(p, y):
    """KL(P || Q), Q over all pairs."""
    total = 0.0
    for start in range(0, len(y), 1000):
        part = y[start : start + 1000]
        total += (1 / (1 + ((part[:, None] - y[None]) ** 2).sum(2))).sum()
    total -= len(y)
    q = 1 / (1 + ((y[p.row] - y[p.col]) ** 2).sum(1)) / total
    there = p.data > 0
    return float((p.data[there] * np.log(p.data[there] / q[there])).sum())


def preserved(x, y):
    near = [NearestNeighbors(n_neighbors=30).fit(z).kneighbors(return_distance=False) for z in (x, y)]
    return float(np.mean([len(np.intersect1d(a, b)) / 30 for a, b in zip(*near)]))


def report(label, mine, theirs):
    show = lambda times: " ".join(f"{time:.2f}" for time in times)
    ratio = statistics.median(theirs) / statistics.median(mine)
    print(f"{label}: recant {show(mine)} s, scikit-learn {show(theirs)} s, {ratio:.1f} times as fast", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--points", type=int, help="in place of each one's own number")
    parser.add_argument("names", nargs="*", metavar="NAME")
    arguments = parser.parse_args()
    for name in arguments.names or [*ATTACKS, "tsne"]:
        if name == "tsne":
            tsne(arguments.points or 10_000, arguments.turns)
        elif name in ATTACKS:
            attack(name, arguments.points or ATTACKS[name][0], arguments.turns)
        else:
            parser.error(f"no `{name}` here; there are {', '.join([*ATTACKS, 'tsne'])}")


if __name__ == "__main__":
    main()
