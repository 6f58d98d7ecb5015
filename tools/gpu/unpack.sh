#!/bin/sh
# Runs `deno task gpu` on a machine that has Python 3 alone, from what `deno task gpu:pack` gathered into out/pack:
# `sh tools/gpu/unpack.sh [flags of deno task gpu]`.
set -eu
cd "$(dirname "$0")/../.."
python3 tools/gpu/unpack.py
machine=$PWD/out/machine
export DENO_DIR="$machine/deno_dir" DENO_NO_UPDATE_CHECK=1 HF_HUB_OFFLINE=1
export PYTHONPATH="$machine/site${PYTHONPATH:+:$PYTHONPATH}"
exec "$machine/deno" run --allow-all --cached-only tools/gpu.ts "$@"
