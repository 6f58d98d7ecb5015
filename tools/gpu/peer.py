"""diffusers with torchao and torch.compile: reads a task as JSON from its only argument and prints a row as JSON."""

import json
import statistics
import sys
import time
import warnings

warnings.filterwarnings("ignore")
task = json.loads(sys.argv[1])

import torch  # noqa: E402
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel  # noqa: E402
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel  # noqa: E402

FOLDER, DEVICE = task["folder"], task["device"]
ON_GPU = DEVICE.startswith("cuda")


def config(part):
    with open(f"{FOLDER}/{part}/config.json") as file:
        return json.load(file)


def random_model(make):
    """A model whose weights are made where it runs."""
    with torch.device(DEVICE):
        torch.set_default_dtype(torch.bfloat16)
        model = make()
        torch.set_default_dtype(torch.float32)
    return model.to(DEVICE, torch.bfloat16).eval().requires_grad_(False)


def scheme(name):
    from torchao import quantization as q

    per_row, per_tensor = q.PerRow(), q.PerTensor()
    return {
        "fp8dqrow": lambda: q.Float8DynamicActivationFloat8WeightConfig(granularity=per_row),
        "fp8dq": lambda: q.Float8DynamicActivationFloat8WeightConfig(granularity=per_tensor),
        "fp8wo": lambda: q.Float8WeightOnlyConfig(),
        "int8dq": lambda: q.Int8DynamicActivationInt8WeightConfig(),
        "int8wo": lambda: q.Int8WeightOnlyConfig(),
        "int4wo": lambda: q.Int4WeightOnlyConfig(group_size=32),
    }[name]()


begin = time.perf_counter()
torch.manual_seed(7)
with torch.no_grad():
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(f"{FOLDER}/scheduler"),
        tokenizer=CLIPTokenizer.from_pretrained(f"{FOLDER}/tokenizer"),
        tokenizer_2=AutoTokenizer.from_pretrained(f"{FOLDER}/tokenizer_2"),
        text_encoder=random_model(lambda: CLIPTextModel(CLIPTextConfig.from_dict(config("text_encoder")))),
        text_encoder_2=random_model(lambda: T5EncoderModel(T5Config.from_dict(config("text_encoder_2")))),
        transformer=random_model(lambda: FluxTransformer2DModel.from_config(config("transformer"))),
        vae=random_model(lambda: AutoencoderKL.from_config(config("vae"))),
    )
pipe.set_progress_bar_config(disable=True)
if task["scheme"] != "none":
    from torchao.quantization import quantize_

    quantize_(pipe.transformer, scheme(task["scheme"]))
if task["compile"]:
    pipe.transformer.to(memory_format=torch.channels_last)
    pipe.transformer = torch.compile(pipe.transformer, mode="max-autotune", fullgraph=True)
    pipe.vae.to(memory_format=torch.channels_last)
    pipe.vae.decode = torch.compile(pipe.vae.decode, mode="max-autotune", fullgraph=True)
model_memory = torch.cuda.memory_allocated() if ON_GPU else 0


def draw():
    """Seconds of a call."""
    start = time.perf_counter()
    pipe(
        [task["prompt"]] * task["batch"],
        height=task["height"],
        width=task["width"],
        max_sequence_length=task["max_sequence_length"],
        num_inference_steps=task["num_inference_steps"],
        guidance_scale=3.5,
        output_type="pt",
        generator=torch.Generator("cpu").manual_seed(7),
    )
    if ON_GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - start


first = draw()
ready = time.perf_counter() - begin
for _ in range(task["warmup"] - 1):
    draw()
if ON_GPU:
    torch.cuda.reset_peak_memory_stats()
times = [draw() for _ in range(task["calls"])]
print(
    json.dumps(
        {
            "model_memory": model_memory,
            "inference_memory": torch.cuda.max_memory_reserved() if ON_GPU else 0,
            "time": statistics.median(times),
            "first_call": first,
            "ready": ready,
        }
    )
)
