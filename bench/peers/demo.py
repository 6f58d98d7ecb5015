"""The demo as a diffusers script, from process start to a PNG on disk: `demo.py MODEL OUT.png`."""

import sys

import torch
from diffusers import FluxPipeline

model, out = sys.argv[1:]
pipe = FluxPipeline.from_pretrained(model, torch_dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
image = pipe(
    "a large red star on a navy background",
    height=128,
    width=128,
    num_inference_steps=20,
    guidance_scale=3.5,
    max_sequence_length=32,
    generator=torch.Generator("cpu").manual_seed(5),
).images[0]
image.save(out)
print(f"saved {out}", flush=True)
