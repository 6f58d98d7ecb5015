"""What PyTorch reaches on a device: prints rows as JSON.

    ceilings.py --device cuda --calls 20 "float 4608x3072x12288" copy

A problem is `copy`, `attention BxHxSxD`, or one of `float`, `fp8dqrow`, `int8dq` with rows, inputs and outputs.
"""

import argparse
import json
import statistics
import time

import torch

flags = argparse.ArgumentParser()
flags.add_argument("--device", required=True)
flags.add_argument("--calls", type=int, required=True)
flags.add_argument("problems", nargs="+")
flags = flags.parse_args()
ON_GPU = flags.device.startswith("cuda")
# So much that no cache has it from one use to the next.
COLD_BYTES = 256e6 if ON_GPU else 1e6


def seconds_of(calls):
    """The median of a call's seconds; calls take turns, so that each finds its weight cold."""
    for call in calls[:2]:
        call()
    times = []
    for i in range(flags.calls):
        call = calls[i % len(calls)]
        if ON_GPU:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            # Keeps the device busy, so that the launch is not what is timed.
            torch.cuda._sleep(200_000)
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) / 1000)
        else:
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def linear_calls(kind, m, k, n):
    """Calls of one multiply, each with a weight of its own, and the bytes that each moves."""
    size = 2 if kind == "float" else 1
    count = min(16, max(2, int(COLD_BYTES // (size * n * k)) + 1))
    moved = size * (n * k + m * k) + (4 if kind == "int8dq" else 2) * m * n
    if kind == "float":
        x = torch.randn(m, k, dtype=torch.bfloat16, device=flags.device)
        weights = [torch.randn(n, k, dtype=torch.bfloat16, device=flags.device) for _ in range(count)]
        return [lambda w=w: torch.nn.functional.linear(x, w) for w in weights], moved
    if kind == "fp8dqrow":
        fp8 = torch.float8_e4m3fn
        x = torch.randn(m, k, device=flags.device).to(fp8)
        weights = [torch.randn(n, k, device=flags.device).to(fp8).t() for _ in range(count)]
        rows = torch.ones(m, 1, device=flags.device)
        columns = torch.ones(1, n, device=flags.device)
        multiply = lambda w: torch._scaled_mm(x, w, rows, columns, out_dtype=torch.bfloat16, use_fast_accum=True)  # noqa: E731
        return [lambda w=w: multiply(w) for w in weights], moved
    if kind == "int8dq":
        # cuBLAS takes no fewer rows than these.
        x = torch.randint(-128, 128, (max(m, 17), k), dtype=torch.int8, device=flags.device)
        weights = [torch.randint(-128, 128, (n, k), dtype=torch.int8, device=flags.device).t() for _ in range(count)]
        return [lambda w=w: torch._int_mm(x, w) for w in weights], moved
    raise SystemExit(f"There is no {kind} in PyTorch")


def row(problem):
    if problem == "copy":
        count = int(2e9) if ON_GPU else int(1e6)
        source = torch.zeros(count, dtype=torch.uint8, device=flags.device)
        target = torch.empty_like(source)
        seconds = seconds_of([lambda: target.copy_(source)])
        return {"problem": "copy", "us": 1e6 * seconds, "tflops": 0, "gb_s": 2 * count / seconds / 1e9}
    kind, sizes = problem.split(" ")
    sizes = [int(size) for size in sizes.split("x")]
    if kind == "attention":
        batch, heads, tokens, width = sizes
        q, k, v = (torch.randn(sizes, dtype=torch.bfloat16, device=flags.device) for _ in range(3))
        calls = [lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)]
        operations, moved = 4 * batch * heads * tokens**2 * width, 8 * batch * heads * tokens * width
    else:
        m, k, n = sizes
        calls, moved = linear_calls(kind, m, k, n)
        operations = 2 * m * k * n
    seconds = seconds_of(calls)
    return {
        "problem": problem,
        "us": 1e6 * seconds,
        "tflops": operations / seconds / 1e12,
        "gb_s": moved / seconds / 1e9,
    }


rows, refusals = [], []
for problem in flags.problems:
    try:
        rows.append(row(problem))
    except RuntimeError as error:
        # PyTorch has no kernel for it on this device.
        refusals.append(f"{problem}: {error}")
if not rows:
    raise SystemExit("\n".join(refusals))
print(json.dumps(rows))
