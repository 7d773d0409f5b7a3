"""What a private training step costs: against the same step without privacy, and against Opacus.

A private step is: gradients of single examples, clipping, the float64 sum, noise, and the optimiser's step. The
plain step is one ordinary backward pass over the same batch and the optimiser's step. Every row of a table is
measured in one process, the variants in turn, least of the repeats; peak memory is that of a fresh process for each
variant, above what the imports take.

Opacus cannot hook convolutions with standardised filters (norm = "ws"), so it runs on the same net with
norm = "group" and its rows are compared with ours on that net. The noise here is torch's own in all variants: the
cryptographic sampler is measured elsewhere. Opacus is a development dependency; nothing of medveil imports it.

    python benchmarks/dp_training.py [--threads 2] [--repeats 8] [--batches 64 256] [--only cnn] [--cpu-time]
"""

import argparse
import gc
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from pydantic import TypeAdapter

from medveil.dp.clipping import FlatClipping, clip_and_sum
from medveil.dp.gradients import GradientEngine
from medveil.models.registry import ModelConfig, build
from medveil.training.objectives import CrossEntropy, DiceCrossEntropy, per_example_loss

CASES = {"cnn": (1, 28, 28), "resnet20": (1, 64, 64), "unet": (1, 64, 64)}
VARIANTS = ("plain", "layerwise", "vmap", "microbatch", "opacus")
CLIP, NOISE = 1.0, 1.0


def setup(kind, norm, batch):
    """Network, loss of every example, images and targets."""
    shape, masks = CASES[kind], kind == "unet"
    config = TypeAdapter(ModelConfig).validate_python({"kind": kind, "norm": norm})
    model = build(config, input_shape=shape, num_classes=2, seed=0)
    objective = DiceCrossEntropy() if masks else CrossEntropy()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, *shape, generator=generator)
    targets = torch.randint(0, 2, (batch, *(shape[1:] if masks else ())), generator=generator)

    def loss(outputs, wanted):
        return per_example_loss(outputs, wanted, objective)

    return model, loss, images, targets


def plain_step(model, loss, images, targets):
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step():
        optimiser.zero_grad()
        loss(model(images), targets).mean().backward()
        optimiser.step()

    return step


def medveil_step(model, loss, images, targets, *, method, chunk_size):
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4)
    parameters = list(model.parameters())
    dimension = sum(tensor.numel() for tensor in parameters)
    engine = GradientEngine(model, loss, method=method, chunk_size=chunk_size, overwrite=True)
    clipping, units = FlatClipping(l2_clip_norm=CLIP), torch.arange(len(images))

    def step():
        total = torch.zeros(dimension, dtype=torch.float64)
        for gradients in engine.chunks(images, targets, units):
            clip_and_sum(clipping, gradients, total)
        total += NOISE * CLIP * torch.randn(dimension)
        vector, start = (total / len(images)).float(), 0
        for tensor in parameters:
            tensor.grad = vector[start : start + tensor.numel()].view(tensor.shape)
            start += tensor.numel()
        optimiser.step()

    return step


def opacus_step(model, loss, images, targets):
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    hooked = GradSampleModule(model)
    optimiser = DPOptimizer(
        torch.optim.SGD(hooked.parameters(), lr=1e-4),
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
        expected_batch_size=len(images),
    )

    def step():
        optimiser.zero_grad()
        loss(hooked(images), targets).mean().backward()
        optimiser.step()

    return step


def step_of(variant, kind, norm, batch, chunk_size):
    """One step of a variant, ready to be called."""
    model, loss, images, targets = setup(kind, norm, batch)
    if variant == "plain":
        return plain_step(model, loss, images, targets)
    if variant == "opacus":
        return opacus_step(model, loss, images, targets)
    return medveil_step(model, loss, images, targets, method=variant, chunk_size=chunk_size)


def seconds(steps, repeats, clock):
    """Least seconds of each, taken in turn; None for a step that raises."""
    best = dict.fromkeys(steps, float("inf"))
    for name, step in steps.items():
        try:
            step()
        except RuntimeError as error:
            print(f"  {name}: {type(error).__name__}")
            best[name] = None
    for _ in range(repeats):
        for name, step in steps.items():
            if best[name] is not None:
                begun = clock()
                step()
                best[name] = min(best[name], clock() - begun)
    return best


def peak_mib(variant, kind, norm, batch, chunk_size, threads):
    """Peak resident memory of two steps in a fresh process, above that of a batch of one, MiB."""
    peaks = []
    for size in (1, batch):
        call = [sys.executable, __file__, "--child", variant, kind, norm, str(size), str(chunk_size), str(threads)]
        answer = subprocess.run(call, check=True, capture_output=True, text=True)
        peaks.append(json.loads(answer.stdout.splitlines()[-1]))
    return peaks[1] - peaks[0]


def child(variant, kind, norm, batch, chunk_size, threads):
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(threads))
    step = step_of(variant, kind, norm, int(batch), int(chunk_size))
    for _ in range(2):
        step()
    # Not getrusage: its peak includes that of the parent, from before exec.
    (peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    print(json.dumps(int(peak.split()[1]) / 1024))


def table(kind, norm, batch, options):
    """Print one table: seconds a step, ratio to the plain step, peak memory."""
    names = [name for name in options.variants if not (name == "opacus" and norm == "ws")]
    steps = {name: step_of(name, kind, norm, batch, options.chunk) for name in names}
    clock = time.process_time if options.cpu_time else time.perf_counter
    found = seconds(steps, options.repeats, clock)
    del steps
    gc.collect()
    print(f"{kind} {'x'.join(map(str, CASES[kind][1:]))} norm={norm} batch={batch}")
    for name, value in found.items():
        if value is None:
            continue
        mib = "" if options.no_memory else f"{peak_mib(name, kind, norm, batch, options.chunk, options.threads):>8.0f}"
        print(f"  {name:<12}{1e3 * value:>9.1f} ms{batch / value:>9.0f} /s{value / found['plain']:>7.2f}x{mib}")


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--chunk", type=int, default=64, help="examples at a time in medveil's rows")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--norms", nargs="+", default=["ws", "group"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["plain", "layerwise", "vmap", "opacus"])
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--cpu-time", action="store_true", help="of the process: steadier on a busy machine, 1 thread")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    print(f"{options.threads} threads, torch {torch.__version__}; columns: step, images a second, ratio to plain, MiB")
    for kind in options.only:
        for batch in options.batches:
            for norm in options.norms:
                table(kind, norm, batch, options)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
