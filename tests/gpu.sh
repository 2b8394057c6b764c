#!/usr/bin/env bash
# Everything that needs CUDA, in one call of under 9 minutes, on a machine without network access: the tests marked for
# CUDA, the benchmark with and without CUDA graphs, then real training through the command line, and a CPU's run resumed.
#
# Uses the python3 that is there (torch 2.11 or newer); results go to $OUT. What is missing there must be on PYTHONPATH:
# dm_control, mujoco, gymnasium, tyro, shimmy and what they need (typeguard, docstring_parser, dm_env, dm_tree, glfw,
# pyopengl, farama_notifications). Where only 64 MiB may travel, dm_control's wheel is too large, by dm_control/locomotion/
# (17 MB, which needs labmaze besides): repack it without that folder, which nothing here imports.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${OUT:-.}
python=${PYTHON:-python3}
"$python" -c 'import torch; assert torch.cuda.is_available(), "no CUDA device"; print(torch.__version__, torch.cuda.get_device_name())' || exit 1
runs=$(mktemp -d)
status=0

timeout 100 "$python" -m pytest -q -k "cuda or captured" tests/test_update.py tests/test_sac.py || status=1
for graphs in "" --cuda-graphs; do
  timeout 95 "$python" tests/benchmark.py --device cuda --threads 1 --turns 20 --step-turns 2 $graphs \
    --output "$out/benchmark${graphs#-}.json" || status=1
done
for graphs in "" --cuda-graphs; do
  timeout 60 "$python" ams_td3.py --env-id cheetah-run --device cuda $graphs --total-timesteps 5000 \
    --learning-starts 1000 --eval-frequency 5000 --run-dir "$runs/cheetah$graphs" | tee -a "$runs/log" || status=1
done
timeout 45 "$python" ppo.py --env-id cheetah-run --device cuda --total-timesteps 4200 --eval-frequency 5000 \
  --run-dir "$runs/ppo" || status=1

# A run that starts on the CPU, is stopped by SIGTERM and goes on with CUDA graphs.
resumed=(ams_td3.py --env-id Pendulum-v1 --learning-starts 200 --run-dir "$runs/resumed" --resume)
timeout 20 "$python" "${resumed[@]}" --device cpu --total-timesteps 1000000
timeout 45 "$python" "${resumed[@]}" --device cuda --cuda-graphs --total-timesteps 10000 | tee -a "$runs/log" || status=1

grep -q "CUDA graphs are off" "$runs/log" && status=1
exit $status
