"""What diffusers and torchao make of a folder: its weights, its outputs for the cases of a reference model; or one of theirs.

    python torchao_exchange.py weights FOLDER OUT           writes the weights of the model in FOLDER, in floats
    python torchao_exchange.py run FOLDER CASES OUT         computes every case of CASES with the model in FOLDER
    python torchao_exchange.py save SOURCE SCHEME FOLDER    quantizes the model in SOURCE and saves it
"""

import sys

import torch
from diffusers import FluxTransformer2DModel, TorchAoConfig
from safetensors.torch import load_file, save_file
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    PerRow,
)

SCHEMES = {
    "int8wo": lambda: Int8WeightOnlyConfig(),
    "int8dq": lambda: Int8DynamicActivationInt8WeightConfig(granularity=PerRow()),
    "fp8wo": lambda: Float8WeightOnlyConfig(),
}


def weights(folder, out):
    model = FluxTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32)
    print(", ".join(sorted({type(p.data).__name__ for p in model.parameters()} - {"Tensor"})))
    values = {name: p.data for name, p in model.named_parameters()}
    save_file({k: (v.dequantize() if hasattr(v, "qdata") else v).contiguous() for k, v in values.items()}, out)


def run(folder, cases, out):
    model = FluxTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32)
    values = load_file(cases)
    outputs = {}
    for name in sorted({key.split(".")[0] for key in values}):
        inputs = {key.split(".in.")[1]: value for key, value in values.items() if key.startswith(f"{name}.in.")}
        with torch.no_grad():
            outputs[f"{name}.out.sample"] = model(**inputs, return_dict=False)[0].contiguous()
    save_file(outputs, out)


def save(source, scheme, folder):
    config = TorchAoConfig(SCHEMES[scheme]())
    model = FluxTransformer2DModel.from_pretrained(source, quantization_config=config, torch_dtype=torch.float32)
    model.save_pretrained(folder)


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    {"weights": weights, "run": run, "save": save}[command](*arguments)
