#!/usr/bin/env bash
# Everything that needs CUDA, in one call of under 9 minutes, on a machine without network access: the tests marked for
# CUDA, then the benchmark with and without CUDA graphs, then real training through the command line.
# Uses the python3 that is there (torch 2.11 or newer). Missing packages are expected on PYTHONPATH; results go to $OUT.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-.}
python=${PYTHON:-python3}
"$python" -c 'import torch; assert torch.cuda.is_available(), "no CUDA device"; print(torch.__version__, torch.cuda.get_device_name())' || exit 1
status=0

timeout 120 "$python" -m pytest -q -k "cuda or captured" tests/test_update.py tests/test_sac.py || status=1
for graphs in "" --cuda-graphs; do
  timeout 100 "$python" tests/benchmark.py --device cuda --threads 1 --turns 20 --step-turns 2 $graphs \
    --output "$out/benchmark${graphs#-}.json" || status=1
done
for graphs in "" --cuda-graphs; do
  timeout 60 "$python" ams_td3.py --env-id cheetah-run --device cuda $graphs --total-timesteps 8000 \
    --learning-starts 1000 --eval-frequency 8000 --run-dir "$(mktemp -d)/run" || status=1
done
timeout 60 "$python" ppo.py --env-id cheetah-run --device cuda --total-timesteps 4200 --eval-frequency 5000 \
  --run-dir "$(mktemp -d)/run" || status=1
exit $status
