"""PyTorch's and diffusers' side of a benchmark: one process that waits for its turn.

Reads one JSON object a line from standard input and answers each with one line on standard output:

    {"prepare": {"kind": "linear", "dtype": "f32", "m": 64, "k": 3072, "n": 3072}}  ->  {"id": 0, "variant": "eager"}
    {"run": 0, "seconds": 0.2}                                                      ->  {"calls": [0.0021, 0.0020]}
    {"drop": 0}                                                                     ->  {}

A failure is answered as {"error": "..."}. Between lines it blocks in a read, with its OpenMP threads asleep, so that
the other side has the machine to itself.
"""

import argparse
import gc
import json
import os
import sys
import time
import warnings

# What libraries print goes to standard error: standard output carries answers alone.
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)

arguments = argparse.ArgumentParser()
arguments.add_argument("--threads", type=int, required=True)
THREADS = arguments.parse_args().threads
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(THREADS)
warnings.filterwarnings("ignore")

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

torch.set_num_threads(THREADS)
torch.manual_seed(0)

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}

# The seconds a kernel's variants are compared for before the fastest is kept.
TRIAL = 0.3


def linear(task):
    """(m, k) by (n, k) transposed: (m, n)."""
    dtype = DTYPES[task["dtype"]]
    x = torch.randn(task["m"], task["k"], dtype=dtype)
    w = torch.randn(task["n"], task["k"], dtype=dtype)
    # oneDNN with a weight that was laid out for it once, as a frozen torch.compile has it.
    packed = torch.ops.mkldnn._reorder_linear_weight(w, task["m"])
    return {
        "eager": lambda: F.linear(x, w),
        "oneDNN, prepacked": lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""),
    }


def int8dq(module):
    """torchao's int8 weights by output and int8 activations by token, in place."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(module, Int8DynamicActivationInt8WeightConfig())
    return module


def linear_int8dq(task):
    """(m, k) by an int8 (n, k) transposed, through torch.compile; the fastest of its modes."""
    dtype = DTYPES[task["dtype"]]
    x = torch.randn(task["m"], task["k"], dtype=dtype)
    module = int8dq(torch.nn.Linear(task["k"], task["n"], bias=False, dtype=dtype).eval())
    # Without freezing, which folds the weights for many minutes.
    return {mode: compiled(module, mode, {"input": x}) for mode in ("default", "max-autotune")}


def sdpa(task):
    """softmax(q k^T / sqrt(d)) v of (b, h, s, d), stored as (b, h, s, d) and as (b, s, h, d)."""
    dtype = DTYPES[task["dtype"]]
    b, h, s, d = task["b"], task["h"], task["s"], task["d"]
    heads = [torch.randn(b, h, s, d, dtype=dtype) for _ in range(3)]
    tokens = [torch.randn(b, s, h, d, dtype=dtype).transpose(1, 2) for _ in range(3)]
    return {
        "by head": lambda: F.scaled_dot_product_attention(*heads),
        "by token": lambda: F.scaled_dot_product_attention(*tokens),
    }


def conv2d(task):
    """3 by 3 over (1, c, height, width) with a border of 1: (1, o, height, width)."""
    dtype = DTYPES[task["dtype"]]
    x = torch.randn(1, task["c"], task["height"], task["width"], dtype=dtype)
    w = torch.randn(task["o"], task["c"], 3, 3, dtype=dtype)
    x_last, w_last = (t.to(memory_format=torch.channels_last) for t in (x, w))
    # The weight laid out once for oneDNN, as a frozen torch.compile has it.
    packed = torch.ops.mkldnn._reorder_convolution_weight(w_last, [1, 1], [1, 1], [1, 1], 1, x_last.size())
    return {
        "default": lambda: F.conv2d(x, w, padding=1),
        "channels_last": lambda: F.conv2d(x_last, w_last, padding=1),
        "channels_last, prepacked": lambda: torch.ops.mkldnn._convolution_pointwise(
            x_last, packed, None, [1, 1], [1, 1], [1, 1], 1, "none", [], ""
        ),
    }


def conv3d(task):
    """3 by 3 by 3 over (1, c, frames + 2, height, width), causal in time, with a border of 1: (1, o, frames, height, width)."""
    dtype = DTYPES[task["dtype"]]
    x = torch.randn(1, task["c"], task["frames"] + 2, task["height"], task["width"], dtype=dtype)
    w = torch.randn(task["o"], task["c"], 3, 3, 3, dtype=dtype)
    x_last, w_last = (t.to(memory_format=torch.channels_last_3d) for t in (x, w))
    padding = [0, 1, 1]
    # The weight laid out once for oneDNN, as a frozen torch.compile has it.
    packed = torch.ops.mkldnn._reorder_convolution_weight(w_last, padding, [1] * 3, [1] * 3, 1, x_last.size())
    return {
        "default": lambda: F.conv3d(x, w, padding=padding),
        "channels_last_3d": lambda: F.conv3d(x_last, w_last, padding=padding),
        "channels_last_3d, prepacked": lambda: torch.ops.mkldnn._convolution_pointwise(
            x_last, packed, None, padding, [1] * 3, [1] * 3, 1, "none", [], ""
        ),
    }


def block(task):
    """One Flux block of width heads * size over text and image tokens; "single" or "double"."""
    from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock

    dtype = DTYPES[task["dtype"]]
    heads, size, text, image = task["heads"], task["size"], task["text"], task["image"]
    dim = heads * size
    make = {"double": FluxTransformerBlock, "single": FluxSingleTransformerBlock}[task["which"]]
    module = make(dim=dim, num_attention_heads=heads, attention_head_dim=size).to(dtype).eval()
    if task["quantization"] == "int8dq":
        int8dq(module)
    angles = torch.rand(text + image, size // 2).repeat_interleave(2, dim=1)
    inputs = dict(
        hidden_states=torch.randn(1, image, dim, dtype=dtype),
        encoder_hidden_states=torch.randn(1, text, dim, dtype=dtype),
        temb=torch.randn(1, dim, dtype=dtype),
        image_rotary_emb=(angles.cos(), angles.sin()),
    )
    return {task["mode"]: compiled(lambda **given: module(**given), task["mode"], inputs)}


def cogvideox_block(task):
    """One CogVideoX block of width heads * size over text and video tokens."""
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock

    dtype = DTYPES[task["dtype"]]
    heads, size, text, video = task["heads"], task["size"], task["text"], task["video"]
    dim = heads * size
    module = CogVideoXBlock(
        dim=dim, num_attention_heads=heads, attention_head_dim=size, time_embed_dim=512, attention_bias=True
    ).to(dtype).eval()
    angles = torch.rand(video, size // 2).repeat_interleave(2, dim=1)
    inputs = dict(
        hidden_states=torch.randn(1, video, dim, dtype=dtype),
        encoder_hidden_states=torch.randn(1, text, dim, dtype=dtype),
        temb=torch.randn(1, 512, dtype=dtype),
        image_rotary_emb=(angles.cos(), angles.sin()) if task["rotary"] else None,
    )
    return {task["mode"]: compiled(lambda **given: module(**given), task["mode"], inputs)}


def compiled(function, mode, inputs):
    """A function as it is ("eager"), or through torch.compile ("default", "max-autotune")."""
    if mode != "eager":
        function = torch.compile(function, mode=mode)
    return lambda: function(**inputs)


def pipeline(task):
    """From a prompt to a PIL image, with everything loaded."""
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(task["model"], torch_dtype=DTYPES[task["dtype"]])
    pipe.set_progress_bar_config(disable=True)
    if task["quantization"] == "int8dq":
        int8dq(pipe.transformer)
    if task["mode"] != "eager":
        pipe.transformer = torch.compile(pipe.transformer, mode=task["mode"])
        pipe.vae.decode = torch.compile(pipe.vae.decode, mode=task["mode"])
    call = {name: task[name] for name in (
        "prompt", "height", "width", "num_inference_steps", "guidance_scale", "max_sequence_length"
    )}
    seed = task["seed"]
    return {task["mode"]: lambda: pipe(**call, generator=torch.Generator("cpu").manual_seed(seed)).images[0]}


KINDS = {
    "linear": linear,
    "linear_int8dq": linear_int8dq,
    "sdpa": sdpa,
    "conv2d": conv2d,
    "conv3d": conv3d,
    "block": block,
    "cogvideox_block": cogvideox_block,
    "pipeline": pipeline,
}


def timed(function, seconds):
    """Seconds of each call: as many calls as fit, at least one."""
    calls = []
    start = time.perf_counter()
    while True:
        before = time.perf_counter()
        function()
        now = time.perf_counter()
        calls.append(now - before)
        if now - start >= seconds:
            return calls


def prepare(task):
    """The fastest of the ways in which PyTorch can do a task, or the one that the task names, warmed up."""
    variants = KINDS[task["kind"]](task)
    if "variant" in task:
        variants = {task["variant"]: variants[task["variant"]]}
    start = time.perf_counter()
    for function in variants.values():
        # The second call is the first at full speed where memory is allocated or code compiled in the first.
        function()
        function()
    warm = time.perf_counter() - start
    best = next(iter(variants))
    if len(variants) > 1:
        best = min(variants, key=lambda name: min(timed(variants[name], TRIAL)))
    return variants[best], {"variant": best, "warmSeconds": warm}


def main():
    prepared = {}
    compiles = False
    for line in sys.stdin:
        try:
            request = json.loads(line)
            if "prepare" in request:
                function, answer = prepare(request["prepare"])
                answer["id"] = max(prepared, default=-1) + 1
                prepared[answer["id"]] = function
                compiles = compiles or request["prepare"].get("mode", "eager") != "eager"
            elif "run" in request:
                function = prepared[request["run"]]
                # One call to warm the caches, which the other side has just filled.
                function()
                answer = {"calls": timed(function, request["seconds"])}
            elif "drop" in request:
                del prepared[request["drop"]]
                if compiles:
                    torch.compiler.reset()
                gc.collect()
                answer = {}
            else:
                raise ValueError(f"unknown request {line.strip()}")
        except Exception as error:  # noqa: BLE001: every failure is the other side's to show
            # All of its lines: torch.compile says on the first one only that it failed.
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:2000]}
        print(json.dumps(answer), file=answers)


with torch.inference_mode():
    main()
