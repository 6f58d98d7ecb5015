"""What diffusers computes for CogVideoX where the goldens say nothing: the 1.5 family, trained positions, other sizes than
the trained one, other activations, and the schedulers' other options. Writes fixtures of the goldens' layout:

    .peers/venv/bin/python bench/peers/cogvideox_cases.py tests
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from diffusers.schedulers import scheduling_dpm_cogvideox
from safetensors.torch import save_file

TESTS = Path(sys.argv[1])
TEXT = 5
TINY = dict(
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=4,
    out_channels=3,
    time_embed_dim=12,
    text_embed_dim=8,
    num_layers=1,
    sample_width=12,
    sample_height=8,
    sample_frames=9,
    max_text_seq_length=TEXT,
)

# Sizes of latents: batch, frames, rows, columns.
FAMILIES = {
    "cogvideox-1.5-mini": (
        dict(
            patch_size_t=2,
            ofs_embed_dim=12,
            use_rotary_positional_embeddings=True,
            activation_fn="gelu",
            timestep_activation_fn="mish",
            flip_sin_to_cos=False,
            freq_shift=1,
        ),
        [(2, 4, 8, 12), (1, 2, 6, 4)],
    ),
    "cogvideox-learned-mini": (
        dict(
            use_rotary_positional_embeddings=True,
            use_learned_positional_embeddings=True,
            activation_fn="swiglu",
            timestep_activation_fn="gelu",
            attention_bias=False,
            patch_bias=False,
            norm_elementwise_affine=False,
        ),
        [(2, 3, 8, 12), (1, 2, 8, 12)],
    ),
    "cogvideox-2b-sizes-mini": (
        dict(temporal_interpolation_scale=1.5, activation_fn="geglu", norm_eps=1e-3),
        [(1, 3, 8, 12), (2, 1, 14, 6), (1, 5, 7, 13)],
    ),
    "cogvideox-5b-sizes-mini": (
        dict(use_rotary_positional_embeddings=True, activation_fn="geglu-approximate"),
        [(1, 3, 10, 6), (2, 1, 6, 20), (1, 2, 18, 18), (1, 2, 2, 10)],
    ),
}


def rotary(config, frames, height, width):
    """As the pipeline prepares it, from the size of latents."""
    p, p_t = config.patch_size, config.patch_size_t
    grid = (height // p, width // p)
    base = (config.sample_height // p, config.sample_width // p)
    if p_t is None:
        crop = get_resize_crop_region_for_grid(grid, base[1], base[0])
        return get_3d_rotary_pos_embed(config.attention_head_dim, crop, grid, frames)
    return get_3d_rotary_pos_embed(
        config.attention_head_dim, None, grid, (frames + p_t - 1) // p_t, grid_type="slice", max_size=base
    )


def models():
    for name, (changes, sizes) in FAMILIES.items():
        torch.manual_seed(len(name))
        model = CogVideoXTransformer3DModel(**{**TINY, **changes}).eval()
        for parameter in model.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
        if changes.get("use_learned_positional_embeddings"):
            model.patch_embed.pos_embedding += torch.randn_like(model.patch_embed.pos_embedding)
        config = model.config
        cases = {}
        for i, (batch, frames, height, width) in enumerate(sizes):
            inputs = dict(
                hidden_states=torch.randn(batch, frames, config.in_channels, height, width),
                encoder_hidden_states=torch.randn(batch, TEXT, config.text_embed_dim),
                timestep=torch.randint(0, 1000, (batch,)),
            )
            call = dict(inputs)
            if config.ofs_embed_dim:
                inputs["ofs"] = call["ofs"] = torch.full((1,), 2.0)
            if config.use_rotary_positional_embeddings:
                call["image_rotary_emb"] = rotary(config, frames, height, width)
                inputs["rotary_cos"], inputs["rotary_sin"] = call["image_rotary_emb"]
            with torch.no_grad():
                sample = model(**call).sample
            cases |= {f"case{i}.in.{key}": value.contiguous() for key, value in inputs.items()}
            cases[f"case{i}.out.sample"] = sample.contiguous()
        folder = TESTS / "fixtures" / name
        model.save_pretrained(folder)
        save_file(cases, folder / "cases.safetensors")


SCHEDULES = [
    dict(beta_schedule="linear", beta_start=0.0001, beta_end=0.02, timestep_spacing="linspace"),
    dict(beta_schedule="squaredcos_cap_v2", prediction_type="sample", steps_offset=1, set_alpha_to_one=False),
    dict(trained_betas=[0.01 + 0.0007 * i for i in range(40)], num_train_timesteps=40, snr_shift_scale=1.0),
    dict(
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True, snr_shift_scale=1.0
    ),
]


def schedulers():
    cases = []
    for config in SCHEDULES:
        for cls in (CogVideoXDDIMScheduler, CogVideoXDPMScheduler):
            for steps in (1, 3, 7, 30):
                torch.manual_seed(steps)
                scheduler = cls(**config)
                scheduler.set_timesteps(steps)
                sample, old, rows = torch.randn(4), None, []
                first = sample.tolist()
                for i, t in enumerate(scheduler.timesteps):
                    output, draws = torch.randn(4), []

                    def drawn(*_, **__):
                        draws.append(torch.randn(4))
                        return draws[-1]

                    if cls is CogVideoXDDIMScheduler:
                        sample = scheduler.step(output, t, sample).prev_sample
                    else:
                        scheduling_dpm_cogvideox.randn_tensor = drawn
                        back = scheduler.timesteps[i - 1] if i > 0 else None
                        sample, old = scheduler.step(output, old, t, back, sample)
                    rows.append(dict(output=output.tolist(), draws=[d.tolist() for d in draws], sample=sample.tolist()))
                cases.append(
                    dict(
                        scheduler=cls.__name__,
                        config=config,
                        steps=steps,
                        timesteps=scheduler.timesteps.tolist(),
                        # The first and last, and some between.
                        alphas=scheduler.alphas_cumprod.double()[:: max(1, len(scheduler.alphas_cumprod) // 8)].tolist(),
                        first=first,
                        # Of long runs the first steps and the last.
                        rows=rows if steps < 8 else rows[:2],
                    )
                )
    # How many timesteps there are for each number of steps, and their sum: trailing ones can be one more.
    trailing = CogVideoXDDIMScheduler(timestep_spacing="trailing")
    counts = []
    for steps in range(1, 1001):
        trailing.set_timesteps(steps)
        counts.append([len(trailing.timesteps), int(trailing.timesteps.sum())])
    path = TESTS / "schedulers" / "cogvideox_cases.json"
    path.write_text(json.dumps(dict(cases=cases, trailing=counts)))


models()
schedulers()
