#!/usr/bin/env python3
"""The PyTorch and scikit-learn side of benches/scrub_simple.py: the steps of a resolved scrub-simple recipe.

    recant show benches/scrub_simple.toml | python3 benches/scrub_simple_torch.py DATA --shadows 1000 [--mode f32]

DATA is a folder with Fashion-MNIST's four files. All numbers come from the recipe. Prints one JSON object: seconds of each
phase, and what was measured of each model. `--pick` times the modes in place of that and names the fastest.
"""
import argparse
import gzip
import json
import os
import sys
import time
import tomllib

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.svm import SVC
from torchvision import transforms

from torch_twins import CORES, EAGER, Mode, divergence, fastest, resnet, timed

CLASSES, SIDE, ASK = 10, 28, 256


def idx(folder, name, header):
    with gzip.open(os.path.join(folder, name + ".gz"), "rb") as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)


def load(folder, settings, rng):
    """Training and test part: bytes N x 1 x 28 x 28 and labels, as many of each class as the recipe takes."""
    parts = []
    for name, limit in (("train", "train_limit"), ("t10k", "test_limit")):
        pixels = idx(folder, name + "-images-idx3-ubyte", 16).reshape(-1, 1, SIDE, SIDE)
        labels = idx(folder, name + "-labels-idx1-ubyte", 8).astype(np.int64)
        each = settings.get(limit, len(labels)) // CLASSES
        chosen = [rng.permutation(np.flatnonzero(labels == label))[:each] for label in range(CLASSES)]
        chosen = np.sort(np.concatenate(chosen))
        parts.append((torch.from_numpy(pixels[chosen]), torch.from_numpy(labels[chosen])))
    return parts


class Lab:
    """Normalisation, mode and generator that all phases share."""

    def __init__(self, pixels, mode):
        scaled = pixels.float() / 255
        self.mean, self.std, self.mode = scaled.mean().item(), scaled.std(correction=0).item(), mode

    def normalised(self, pixels):
        x = pixels.float().div_(255).sub_(self.mean).div_(self.std)
        return x.contiguous(memory_format=self.mode.layout)

    def changed(self, pixels, transform):
        """Padded, cropped, mirrored and cut out, each image by draws of its own, a batch at once."""
        if transform["name"] == "none":
            return self.normalised(pixels)
        count, pad, hole = len(pixels), transform["padding"], transform["cutout"]
        line, image = torch.arange(SIDE), torch.arange(count)
        rows = line + torch.randint(0, 2 * pad + 1, (count, 1))
        columns = line + torch.randint(0, 2 * pad + 1, (count, 1))
        columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
        padded = F.pad(pixels, (pad, pad, pad, pad))
        x = self.normalised(padded[image[:, None, None], 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1))
        if hole:
            start = torch.randint(0, SIDE, (2, count, 1)) - hole // 2
            inside = (line >= start) & (line < start + hole)
            x.masked_fill_((inside[0][:, :, None] & inside[1][:, None, :]).unsqueeze(1), 0.0)
        return x

    def logits(self, network, pixels):
        network.eval()
        with torch.inference_mode(), self.mode.autocast():
            chunks = [network(self.normalised(chunk)).float() for chunk in pixels.split(ASK)]
        return torch.cat(chunks)


def network(stage, mode):
    arch = stage["arch"]
    return resnet([2, 2, 2, 2], False, arch["stem"], arch["width"], 1).to(memory_format=mode.layout)


def sgd(model, stage):
    rule = stage["optimizer"]
    return fastest(
        torch.optim.SGD, model.parameters(), lr=stage["lr"], momentum=rule["momentum"], weight_decay=rule["weight_decay"]
    )


def descend(optimiser, loss):
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


def train(lab, stage, pixels, labels):
    model = network(stage, lab.mode).train()
    optimiser, steps = sgd(model, stage), stage["schedule"]["multi_step"]
    for epoch in range(stage["epochs"]):
        rate = stage["lr"] * steps["factor"] ** sum(epoch >= at for at in steps["at"])
        for group in optimiser.param_groups:
            group["lr"] = rate
        for rows in torch.randperm(len(pixels)).split(stage["batch"]):
            x = lab.changed(pixels[rows], stage["transform"])
            with lab.mode.autocast():
                logits = model(x)
            descend(optimiser, F.cross_entropy(logits.float(), labels[rows]))
    return model


def views(stage, pixels):
    """One new image for each, by torchvision on PIL pictures."""
    strength, blur = stage["jitter"], max(SIDE // 10, 3) | 1
    change = transforms.Compose([
        transforms.RandomResizedCrop(SIDE, scale=(stage["crop"], 1.0)),
        transforms.RandomHorizontalFlip(stage["flip"]),
        transforms.RandomApply([transforms.ColorJitter(*[strength] * 3, strength / 4)], stage["jitter_chance"]),
        transforms.RandomGrayscale(stage["grayscale"]),
        transforms.GaussianBlur(blur, (0.1, stage["blur"])),
        transforms.PILToTensor(),
    ])
    return torch.stack([change(Image.fromarray(picture[0])) for picture in pixels.numpy()])


def scrub(lab, stage, original, forget, retain):
    student = network(stage, lab.mode)
    student.load_state_dict(original.state_dict())
    original.eval()
    optimiser, temperature = sgd(student, stage), stage["temperature"]
    square = temperature * temperature
    student.train()
    for epoch in range(stage["epochs"]):
        sides = [("max", forget)] if epoch < stage["msteps"] else []
        for step, (pixels, labels) in [*sides, ("min", retain)]:
            for rows in torch.randperm(len(pixels)).split(stage["batch"]):
                x = lab.normalised(pixels[rows])
                with lab.mode.autocast():
                    logits = student(x)
                    with torch.no_grad():
                        target = original(x)
                far = square * divergence(logits.float(), target.float(), temperature)
                near = F.cross_entropy(logits.float(), labels[rows])
                descend(optimiser, -far if step == "max" else stage["gamma"] * near + stage["alpha"] * far)
    return student


def features(logits, labels):
    """What each SVC attack looks at."""
    p = F.softmax(logits.double(), 1)
    rows, log = torch.arange(len(labels)), lambda q: q.clamp_min(1e-30).log()
    true, others = p[rows, labels], p.clone()
    others[rows, labels] = 0.0
    rest = 1 - others
    modified = -(1 - true) * log(true) - (others * log(rest)).sum(1)
    return {
        "mia_confidence": true[:, None],
        "mia_correctness": (p.argmax(1) == labels).double()[:, None],
        "mia_entropy": -(p * log(p)).sum(1, keepdim=True),
        "mia_modified_entropy": modified[:, None],
        "mia_probabilities": p,
    }


def evaluate(lab, model, parts, shadows, rng):
    logits = {name: lab.logits(model, pixels) for name, (pixels, _) in parts.items()}
    labels = {name: labels for name, (_, labels) in parts.items()}
    found = {}
    for name in parts:
        right = logits[name].argmax(1) == labels[name]
        found[f"accuracy.{name}"] = 100 * right.double().mean().item()
        found[f"loss.{name}"] = F.cross_entropy(logits[name], labels[name]).item()
    count = min(shadows, len(labels["retain"]), len(labels["test"]))
    members, strangers = (rng.permutation(len(labels[name]))[:count] for name in ("retain", "test"))
    seen = {name: features(logits[name], labels[name]) for name in parts}
    for attack in seen["forget"]:
        x = torch.cat([seen["retain"][attack][members], seen["test"][attack][strangers]]).numpy()
        svc = SVC(C=3, gamma="auto", kernel="rbf").fit(x, np.repeat([1, 0], count))
        found[attack] = 100 * float(np.mean(svc.predict(seen["forget"][attack].numpy()) == 0))
    losses = {name: F.cross_entropy(logits[name], labels[name], reduction="none").numpy() for name in ("forget", "test")}
    count = min(len(losses["forget"]), len(losses["test"]), 10_000)
    x = np.concatenate([rng.permutation(losses[name])[:count] for name in ("forget", "test")])[:, None]
    folds = StratifiedKFold(10, shuffle=True, random_state=0)
    found["mia_loss"] = float(cross_val_score(LogisticRegression(), x, np.repeat([1, 0], count), cv=folds).mean())
    return found


def run(stages, folder, shadows, mode):
    clock, phases, rng = [time.perf_counter()], {}, np.random.default_rng(0)

    def done(phase):
        now = time.perf_counter()
        phases[phase], clock[0] = now - clock[0], now

    (pixels, labels), test = load(folder, stages["images"], rng)
    order = torch.from_numpy(rng.permutation(len(labels)))
    gone, kept = order.split([stages["split"]["forget"]["count"], len(order) - stages["split"]["forget"]["count"]])
    forget, retain, lab = (pixels[gone], labels[gone]), (pixels[kept], labels[kept]), Lab(pixels, mode)
    done("data")
    original = train(lab, stages["original"], pixels, labels)
    done("original")
    retrained = train(lab, stages["retrained"], *retain)
    done("retrained")
    grown = torch.cat([forget[0], views(stages["simple"], forget[0])]), forget[1].repeat(2)
    done("simple")
    stage = {**stages["unlearned"], "arch": stages["original"]["arch"]}
    unlearned = scrub(lab, stage, original, grown, retain)
    done("unlearned")
    parts = {"forget": forget, "retain": retain, "test": test}
    models = {"original": original, "retrained": retrained, "unlearned": unlearned}
    numbers = {name: evaluate(lab, model, parts, shadows, rng) for name, model in models.items()}
    done("evaluate")
    return {"phases": phases, "numbers": numbers}


def pick(stages):
    """Training speed of each mode on the recipe's network and batch."""
    times, stage = {}, stages["original"]
    pixels = torch.randint(0, 256, (stage["batch"], 1, SIDE, SIDE), dtype=torch.uint8)
    labels = torch.arange(len(pixels)) % CLASSES
    for name in EAGER:
        lab = Lab(pixels, Mode(name))
        model = network(stage, lab.mode).train()
        optimiser = sgd(model, stage)

        def step():
            x = lab.changed(pixels, stage["transform"])
            with lab.mode.autocast():
                logits = model(x)
            descend(optimiser, F.cross_entropy(logits.float(), labels))

        times[name] = timed(step, 2.0)[0]
    return {"mode": min(times, key=times.get), "step_seconds": times}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--shadows", type=int, default=1000, help="members, and strangers, that an SVC learns from")
    parser.add_argument("--mode", default="f32")
    parser.add_argument("--pick", action="store_true")
    options = parser.parse_args()
    stages = tomllib.loads(sys.stdin.read())["stages"]
    torch.set_num_threads(CORES)
    torch.manual_seed(0)
    found = pick(stages) if options.pick else run(stages, options.data, options.shadows, Mode(options.mode))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
