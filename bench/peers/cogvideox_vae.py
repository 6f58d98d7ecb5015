"""diffusers' side of cogvideox_vae.ts: makes a checkpoint of CogVideoX's autoencoder with random weights, and decodes.

    python cogvideox_vae.py make FOLDER
    python cogvideox_vae.py decode FOLDER MODE THREADS FRAMES ROWS COLUMNS

The second prints one line of JSON: the seconds of one decoding, without those of compiling, and the most memory that
the process had.
"""

import json
import os
import resource
import sys
import time
import warnings

warnings.filterwarnings("ignore")


def make(folder):
    import torch
    from diffusers import AutoencoderKLCogVideoX

    torch.manual_seed(0)
    blocks = 4
    AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * blocks, up_block_types=("CogVideoXUpBlock3D",) * blocks
    ).save_pretrained(folder)


def decode(folder, mode, threads, frames, rows, columns):
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = threads
    import torch
    from diffusers import AutoencoderKLCogVideoX

    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX.from_pretrained(folder).eval()
    # What decoding does not use is not held against it.
    vae.encoder = None

    def latents(*sizes):
        return torch.randn(1, vae.config.latent_channels, *sizes)

    with torch.inference_mode():
        call = vae.decode
        if mode == "eager":
            call(latents(1, 8, 8))  # libraries are loaded, weights are in memory
        else:
            call = torch.compile(vae.decode)
        z = latents(int(frames), int(rows), int(columns))
        start = time.perf_counter()
        call(z)
        seconds = time.perf_counter() - start
        if mode != "eager":
            from torch._dynamo.utils import calculate_time_spent

            seconds -= calculate_time_spent()["total_wall_time"]
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak": peak}))


{"make": make, "decode": decode}[sys.argv[1]](*sys.argv[2:])
