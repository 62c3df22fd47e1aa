#!/usr/bin/env python3
"""The PyTorch side of benches/compare.py: the networks and steps of benches/steps.rs, layer for layer.

    python3 benches/torch_twins.py ROW [--batch 64] [--width 64] [--seconds 4] [--modes "f32,bf16 channels_last"] [--device cuda]

Prints one JSON object a measurement: a mode that fails says so in `error`. `parameters` lets compare.py check that both
sides have the same network.
"""
import argparse
import contextlib
import gc
import json
import os
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
EAGER = ["f32", "f32 channels_last", "bf16 channels_last"]
COMPILED = ["f32 compile", "f32 channels_last compile", "bf16 channels_last compile"]
SGD = {"momentum": 0.9, "weight_decay": 5e-4, "lr": 0.001}
ADAM = {"betas": (0.5, 0.999)}
MEAN, STD, SIDE, CLASSES, NOISE = 0.5, 0.25, 32, 10, 100


class Mode:
    """How a network is run: `f32` or `bf16` (autocast), memory layout, compiled or not."""

    def __init__(self, name):
        self.name = name
        words = name.split()
        self.bf16, self.compiled = words[0] == "bf16", "compile" in words
        self.layout = torch.channels_last if "channels_last" in words else torch.contiguous_format

    def place(self, network):
        network = network.to(memory_format=self.layout)
        return torch.compile(network) if self.compiled else network

    def autocast(self):
        device = torch.get_default_device().type
        return torch.autocast(device, dtype=torch.bfloat16) if self.bf16 else contextlib.nullcontext()


# networks


def conv(i, o, kernel=3, stride=1, padding=None):
    return nn.Conv2d(i, o, kernel, stride, kernel // 2 if padding is None else padding, bias=False)


class Residual(nn.Module):
    def __init__(self, i, width, stride, bottleneck):
        super().__init__()
        o = 4 * width if bottleneck else width
        if bottleneck:
            layers = [conv(i, width, 1), nn.BatchNorm2d(width), nn.ReLU(True), conv(width, width, 3, stride)]
            layers += [nn.BatchNorm2d(width), nn.ReLU(True), conv(width, o, 1), nn.BatchNorm2d(o)]
        else:
            layers = [conv(i, width, 3, stride), nn.BatchNorm2d(width), nn.ReLU(True)]
            layers += [conv(width, o), nn.BatchNorm2d(o)]
        self.main = nn.Sequential(*layers)
        short = stride != 1 or i != o
        self.short = nn.Sequential(conv(i, o, 1, stride), nn.BatchNorm2d(o)) if short else nn.Identity()

    def forward(self, x):
        return F.relu(self.main(x) + self.short(x), inplace=True)


class Classifier(nn.Module):
    """Layers to features, and a linear layer to logits."""

    def __init__(self, layers, features, classes):
        super().__init__()
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(features, classes)

    def forward(self, x):
        return self.fc(self.features(x))


def resnet(blocks, bottleneck, stem, width, channels=3, classes=CLASSES):
    layers = [conv(channels, width, 7, 2) if stem == "imagenet" else conv(channels, width)]
    layers += [nn.BatchNorm2d(width), nn.ReLU(True)]
    if stem != "cifar":
        layers.append(nn.MaxPool2d(3, 2, 1))
    i = width
    for stage, count in enumerate(blocks):
        for index in range(count):
            layers.append(Residual(i, width << stage, 2 if stage > 0 and index == 0 else 1, bottleneck))
            i = (width << stage) * (4 if bottleneck else 1)
    return Classifier(layers, i, classes)


def allcnn(width):
    layers, i = [], 3
    for times, kernel, stride in [(1, 3, 1), (1, 3, 1), (2, 3, 2), (2, 3, 1), (2, 3, 1), (2, 3, 2), (2, 3, 1), (2, 1, 1)]:
        layers += [conv(i, times * width, kernel, stride), nn.BatchNorm2d(times * width), nn.ReLU(True)]
        i = times * width
    return Classifier(layers, i, CLASSES)


def dcgan(width):
    """Generator and discriminator for images of 32 x 32."""
    layers, i = [], NOISE
    for o, window in [(8 * width, (4, 1, 0)), (4 * width, (4, 2, 1)), (2 * width, (4, 2, 1))]:
        layers += [nn.ConvTranspose2d(i, o, *window, bias=False), nn.BatchNorm2d(o), nn.ReLU(True)]
        i = o
    generator = nn.Sequential(*layers, nn.ConvTranspose2d(i, 3, 4, 2, 1, bias=False), nn.Sigmoid())
    layers, i = [conv(3, 2 * width, 4, 2, 1), nn.LeakyReLU(0.2, True)], 2 * width
    for o in (4 * width, 8 * width):
        layers += [conv(i, o, 4, 2, 1), nn.BatchNorm2d(o), nn.LeakyReLU(0.2, True)]
        i = o
    layers += [conv(i, 16 * width, 4, 1, 0), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return generator, nn.Sequential(*layers, nn.Linear(16 * width, 1), nn.Sigmoid())


def opengan(features):
    """Generator and discriminator of features: their 1 x 1 convolutions on single pixels are linear layers."""
    width, layers, i = max(features // 8, 1), [], NOISE
    for times in (8, 4, 2, 4):
        layers += [nn.Linear(i, times * width, bias=False), nn.BatchNorm1d(times * width), nn.ReLU(True)]
        i = times * width
    generator = nn.Sequential(*layers, nn.Linear(i, features))
    layers, i = [nn.Linear(features, 8 * width, bias=False), nn.LeakyReLU(0.2, True)], 8 * width
    for times in (4, 2, 1):
        layers += [nn.Linear(i, times * width, bias=False), nn.BatchNorm1d(times * width), nn.LeakyReLU(0.2, True)]
        i = times * width
    return generator, nn.Sequential(*layers, nn.Linear(i, 1, bias=False), nn.Sigmoid())


# steps


def fastest(kind, parameters, **settings):
    """An optimiser, fused or foreach, whichever steps faster over these parameters."""
    parameters = list(parameters)
    times = {}
    for form in ("fused", "foreach"):
        optimiser = kind(parameters, **{**settings, "lr": 0.0, form: True})
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        times[form] = timed(optimiser.step, 0.05)[0]
    for parameter in parameters:
        parameter.grad = None
    return kind(parameters, **{**settings, min(times, key=times.get): True})


def timed(call, budget):
    """Median seconds of at least three calls, after some that warm up, and how many there were. On a GPU calls are asked for
    ten at a time, and waited for."""
    on_gpu = torch.get_default_device().type == "cuda"
    many, wait = (10, torch.cuda.synchronize) if on_gpu else (1, lambda: None)
    for _ in range(many):
        call()
    wait()
    times, begun = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begun < budget:
        start = time.perf_counter()
        for _ in range(many):
            call()
        wait()
        times.append((time.perf_counter() - start) / many)
    return statistics.median(times), many * len(times)


def batches(batch, layout):
    """Random pixels, kept as bytes; each call gives the next normalised batch and its labels."""
    count = 8 * batch
    data = torch.randint(0, 256, (count, SIDE, SIDE, 3), dtype=torch.uint8)
    if layout is torch.contiguous_format:
        data = data.permute(0, 3, 1, 2).contiguous()
    labels, order, at = torch.arange(count) % CLASSES, torch.randperm(count), [0]

    def following():
        rows = order[at[0] : at[0] + batch]
        at[0] = (at[0] + batch) % count
        x = data[rows].float().div_(255).sub_(MEAN).div_(STD)
        return x if layout is torch.contiguous_format else x.permute(0, 3, 1, 2), labels[rows]

    return following


def size(*networks):
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


def supervised(network, batch, mode):
    raw, network = network, mode.place(network)
    optimiser, following = fastest(torch.optim.SGD, raw.parameters(), **SGD), batches(batch, mode.layout)

    def train():
        x, y = following()
        with mode.autocast():
            loss = F.cross_entropy(network(x), y)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    def evaluate():
        x, _ = following()
        with torch.inference_mode(), mode.autocast():
            network(x).float()

    # `eval` of a compiled network is compiled anew: train first, then switch once
    return {"train": (raw.train, train), "eval": (raw.eval, evaluate)}, size(raw)


def divergence(student, teacher, temperature):
    """KL(teacher || student), both softened, a mean over images."""
    student, teacher = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def scrub(width, batch, mode):
    """A min step: cross-entropy and alpha T^2 KL(original || student), alpha 0.5, T 4."""
    raw, original = (resnet([2, 2, 2, 2], False, "cifar", width) for _ in range(2))
    student, teacher = mode.place(raw), mode.place(original.eval())
    optimiser, following = fastest(torch.optim.SGD, raw.parameters(), **SGD), batches(batch, mode.layout)

    def train():
        x, y = following()
        with mode.autocast():
            logits = student(x)
            with torch.no_grad():
                target = teacher(x)
        loss = F.cross_entropy(logits.float(), y) + 0.5 * 16 * divergence(logits.float(), target.float(), 4.0)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return {"train": (raw.train, train)}, size(raw)


def bad_teaching(width, batch, mode):
    raw, bad, good = (resnet([2, 2, 2, 2], False, "cifar", width) for _ in range(3))
    student, bad, good = mode.place(raw), mode.place(bad.eval()), mode.place(good.eval())
    optimiser, following = fastest(torch.optim.SGD, raw.parameters(), **SGD), batches(batch, mode.layout)

    def train():
        x, y = following()
        forget = (y % 2).unsqueeze(1).float()
        with mode.autocast():
            with torch.no_grad():
                targets = [F.softmax(teacher(x).float(), 1) for teacher in (bad, good)]
            logits = student(x)
        target = forget * targets[0] + (1 - forget) * targets[1]
        loss = F.kl_div(F.log_softmax(logits.float(), 1), target, reduction="batchmean")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return {"train": (raw.train, train)}, size(raw)


def pair(raw, noise, real, rates, mode):
    """The discriminator's step, then the generator's by the discriminator that has just moved."""
    generator, discriminator = (mode.place(network) for network in raw)
    optimisers = [fastest(torch.optim.Adam, net.parameters(), lr=rate, **ADAM) for net, rate in zip(raw, rates)]

    def judged(x, target):
        with mode.autocast():
            probability = discriminator(x)
        return F.binary_cross_entropy(probability.float(), torch.full_like(probability, target, dtype=torch.float))

    def train():
        with mode.autocast():
            fake = generator(noise())
        loss = judged(real(), 1.0) + judged(fake.detach(), 0.0)
        optimisers[1].zero_grad(set_to_none=True)
        loss.backward()
        optimisers[1].step()
        raw[1].requires_grad_(False)
        optimisers[0].zero_grad(set_to_none=True)
        judged(fake, 1.0).backward()
        optimisers[0].step()
        raw[1].requires_grad_(True)

    return {"train": (lambda: [network.train() for network in raw], train)}, size(*raw)


def dcgan_pair(width, batch, mode):
    following = batches(batch, mode.layout)
    # as the discriminator sees images: in [0, 1]
    return pair(
        dcgan(width), lambda: torch.randn(batch, NOISE, 1, 1), lambda: following()[0] * STD + MEAN, (2e-4, 2e-4), mode
    )


def opengan_pair(width, batch, mode):
    features = torch.randn(4 * batch, 8 * width)
    real = lambda: features[torch.randint(0, len(features), (batch,))]  # noqa: E731
    return pair(opengan(8 * width), lambda: torch.randn(batch, NOISE), real, (1e-3, 1e-3 / 1.5), mode)


def simclr(width, batch, mode):
    """Two views of each image by torchvision, NT-Xent at temperature 0.5, Adam; the last layer of the network rests."""
    from torch_views import loader

    raw = resnet([2, 2, 2, 2], False, "cifar", width)
    head = nn.Sequential(nn.Linear(8 * width, 8 * width), nn.ReLU(True), nn.Linear(8 * width, 128))
    trained = nn.Sequential(raw.features, head)
    network = mode.place(trained)
    optimiser = fastest(torch.optim.Adam, trained.parameters(), lr=1e-3, weight_decay=1e-6)
    diagonal = torch.eye(2 * batch, dtype=torch.bool)
    partner = torch.arange(2 * batch).roll(batch)

    def step(views):
        one, other = next(views)
        x = torch.cat([one, other]).contiguous(memory_format=mode.layout)
        with mode.autocast():
            z = network(x)
        z = F.normalize(z.float(), dim=1)
        loss = F.cross_entropy((z @ z.T / 0.5).masked_fill(diagonal, float("-inf")), partner)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    # The loader of the better speed: in this process, or in as many workers as there are cores.
    if simclr.workers is None:
        times = {}
        for workers in (0, CORES):
            views = loader(batch, SIDE, MEAN, STD, workers)
            times[workers] = timed(lambda: step(views), 0.5)[0]
        simclr.workers = min(times, key=times.get)
    views = loader(batch, SIDE, MEAN, STD, simclr.workers)
    return {"train": (trained.train, lambda: step(views))}, size(raw, head)


simclr.workers = None

RESNET18, RESNET50 = [2, 2, 2, 2], [3, 4, 6, 3]
ROWS = {
    "resnet18": lambda width, *rest: supervised(resnet(RESNET18, False, "cifar", width), *rest),
    "resnet18_pool": lambda width, *rest: supervised(resnet(RESNET18, False, "cifar_pool", width), *rest),
    "resnet18_imagenet": lambda width, *rest: supervised(resnet(RESNET18, False, "imagenet", width), *rest),
    "resnet50": lambda width, *rest: supervised(resnet(RESNET50, True, "cifar", width), *rest),
    # its own width is 96 where that of the others is 64
    "allcnn": lambda width, *rest: supervised(allcnn(3 * width // 2), *rest),
    "dcgan": dcgan_pair,
    "opengan": opengan_pair,
    "simclr": simclr,
    "scrub": scrub,
    "bad_teaching": bad_teaching,
}


def forget_peak():
    gc.collect()
    if torch.get_default_device().type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak():
    """Most bytes held since `forget_peak`, torch itself among them; workers of a loader are not. On a GPU its own."""
    if torch.get_default_device().type == "cuda":
        return torch.cuda.max_memory_reserved()
    with contextlib.suppress(OSError, IndexError), open("/proc/self/status") as file:
        return int(file.read().split("VmHWM:")[1].split()[0]) * 1024
    return None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--modes", default=",".join(EAGER))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(CORES)
    torch.set_default_device(options.device)
    # the fastest ways, and TF32 wherever PyTorch has it
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    for name in options.modes.split(","):
        torch.manual_seed(0)
        if "compile" in name:
            torch._dynamo.reset()
        forget_peak()
        line = {"row": options.row, "batch": options.batch, "width": options.width, "mode": name}
        try:
            steps, parameters = ROWS[options.row](options.width, options.batch, Mode(name))
            for what, (prepare, call) in steps.items():
                prepare()
                if "compile" in name:
                    call()
                seconds, count = timed(call, options.seconds)
                found = {"images_per_second": options.batch / seconds, "step_seconds": seconds, "steps": count}
                found = {"what": what, "parameters": parameters, **found, "peak_bytes": peak()}
                print(json.dumps({**line, **found}), flush=True)
        except Exception as error:  # a mode that does not work on this machine is a result too
            words = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            print(json.dumps({**line, "error": words[:300]}), flush=True)
        steps = call = None


if __name__ == "__main__":
    main()
