#!/usr/bin/env bash
# Everything that needs CUDA, in under 10 minutes: the tests marked for CUDA, the benchmark, training through the command
# line, and a CPU's run resumed. Uses $PYTHON, or python3, with what requirements.txt lists; results go to $OUT.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${OUT:-.}
python=${PYTHON:-python3}
runs=$(mktemp -d)
status=0
"$python" -c "import torch; print(torch.cuda.get_device_name())" || exit 1 # an error, where there is no CUDA

timeout 100 "$python" -m pytest -q -k cuda tests/test_update.py || status=1
for graphs in "" --cuda-graphs; do
  timeout 100 "$python" tests/benchmark.py --device cuda $graphs --turns 20 --step-turns 2 \
    --output "$out/benchmark${graphs#-}.json" || status=1
  for script in ams_td3 ams_sac; do
    timeout 60 "$python" $script.py --env-id cheetah-run --device cuda $graphs --total-timesteps 3000 \
      --learning-starts 1000 --eval-frequency 3000 --run-dir "$runs/$script$graphs" || status=1
  done
done
timeout 45 "$python" ppo.py --env-id cheetah-run --device cuda --total-timesteps 4200 --eval-frequency 5000 \
  --run-dir "$runs/ppo" || status=1

# A run that starts on the CPU, is stopped by SIGTERM and goes on with CUDA graphs
script_and_run=(ams_td3.py --env-id Pendulum-v1 --learning-starts 200 --run-dir "$runs/resumed" --resume)
timeout --preserve-status 20 "$python" "${script_and_run[@]}" --device cpu --total-timesteps 1000000
if (($? != 143)) || [[ ! -f $runs/resumed/checkpoint.pt ]]; then
  status=1
fi
timeout 60 "$python" "${script_and_run[@]}" --device cuda --cuda-graphs --total-timesteps 10000 || status=1
exit "$status"
