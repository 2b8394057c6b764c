#!/usr/bin/env bash
# For Slurm, where an array task trains one run; sbatch's own arguments win. USR1 comes three minutes before the end.
#SBATCH --job-name=ams --requeue --open-mode=append --signal=B:USR1@180
#SBATCH --gres=gpu:1 --cpus-per-task=9 --mem=16G --time=08:00:00
# shellcheck disable=SC2009,SC2016,SC2064,SC2317 # pgrep counts zombies; xargs calls train; traps expand where they are set
usage="bash run_all.sh [SUITE ...] [OPTION ...] [-- ARGUMENTS FOR EVERY SCRIPT]; the same command goes on where it was
Suites: table2 table3 (the default), sampling, controls (is it NTD, the LayerNorm or the missing noise?), smoke
  --tasks, --algorithms, --seeds LIST    only these, separated by commas; an algorithm is a script's name
  --list, --status    print the commands, to be pasted in the project's folder; print how far the runs are
  --jobs N            runs at once (default: one for 9 cores, at most 4 on a GPU)
  --gpus LIST         GPUs to use in turn (default: CUDA_VISIBLE_DEVICES, or all)
Environment: PYTHON, the interpreter (default: python); OMP_NUM_THREADS, threads of a run's learner (default: 1)"
die() { echo "run_all.sh: error: $1" >&2 && exit 2; } # up to the next line in syntax that bash 3.2 and dash read too
case ${BASH_VERSION:-0.} in [0-3].* | 4.[0-3].*) die "needs bash 4.4 or newer; macOS: brew install bash" ;; esac
set -u
suites="" mode=run jobs="" gpus="" tasks="" algorithms="" seeds=""
while (($#)) && [[ $1 != -- ]]; do
  [[ $1 == --?*=* ]] && set -- "${1%%=*}" "${1#*=}" "${@:2}"
  case $1 in
  table2 | table3 | sampling | controls | smoke) suites+=" $1" ;;
  --list | --status) mode=${1#--} ;;
  -h | --help) exec echo "$usage" ;;
  --tasks | --algorithms | --seeds | --jobs | --gpus)
    [[ ${2:-} == [!-]* ]] || die "$1 needs a value"
    printf -v "${1#--}" %s "${2//,/ }" && shift ;;
  *) die "$1 is unknown; known: table2 table3 sampling controls smoke, and the options that --help lists" ;;
  esac
  shift
done
[[ $jobs =~ ^([1-9][0-9]{0,3})?$ ]] || die "--jobs needs a positive number, not $jobs"
suites=${suites:- table2 table3} extra=("${@:2}") python=${PYTHON:-python} index=${SLURM_ARRAY_TASK_ID:-}
[[ " ${extra[*]//_/-} " =~ \ --(env-id|exp-name|seed|run-dir|(no-)?(resume|overwrite)|evaluate)[\ =] ]] &&
  die "--${BASH_REMATCH[1]} can't be given behind --, because run_all.sh chooses the run and its directory"
project=$(dirname "$0") && [[ -f $project/td3.py ]] || project=${SLURM_SUBMIT_DIR:-$project} # Slurm runs a copy of this
{ CDPATH="" cd -- "$project" && [[ -f td3.py ]]; } || die "no td3.py beside run_all.sh, nor where sbatch was called"
declare -A budget=([dog-run]=1000000 [humanoid-run]=1000000 [walker-walk]=1100) # steps; the other tasks: 500,000
runs=() known="" # a run is "NAME STEPS COMMAND"
add() { # SEEDS TASKS VARIANT[:FLAG ...] ...: adds each run that the filters leave in, once
  for seed in $1; do for task in $2; do for variant in "${@:3}"; do
    IFS=:= read -ra words <<<"${variant//:/:--}"
    [[ ${words[0]} =~ ^(ams_)?[a-z]+3? ]] && script=${BASH_REMATCH[0]} name=${task}__${words[0]}__$seed
    known+=" $task $script $seed "
    [[ " ${tasks:-$task} " == *" $task "* && " ${algorithms:-$script} " == *" $script "* &&
      " ${seeds:-$seed} " == *" $seed "* && " ${runs[*]}" != *" $name "* ]] || continue
    printf -v command "%q " "$python" "$script.py" --env-id "$task" --exp-name "${words[0]}" --seed "$seed" \
      --total-timesteps "${budget[$task]:-500000}" "${words[@]:1}" --resume "${extra[@]}"
    [[ $command =~ .*\ --total[-_]timesteps[\ =]([0-9_]+) ]] # the last one wins
    runs+=("$name ${BASH_REMATCH[1]} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} ${command% }")
  done; done; done
}
few="0 42 123" parts=({td3,sac} ams_{td3,sac}{,_no_ntd:no-ntd,_no_layer_norm:no-layer-norm})
for suite in $suites; do # seed by seed, so that there is a whole table early
  case $suite in
  table2) add "0 10 42 77 123" "cheetah-run humanoid-run quadruped-walk quadruped-run dog-stand dog-walk dog-trot \
    dog-run h1-sit h1-slide h1-walk h1-run" ppo {,ams_}{td3,sac} ;;
  table3) add "$few" quadruped-run "${parts[@]}" ams_td3_eps0.{4:epsilon=0.4,6:epsilon=0.6,8:epsilon=0.8} \
    ams_td3_k{4:num-neighbors=4,6:num-neighbors=6,10:num-neighbors=10} ;;
  sampling) add "$few" "quadruped-run dog-run" ams_td3{,_antithetic:sampling=antithetic,_gaussian:sampling=gaussian} ;;
  controls) add "$few" "dog-stand dog-run quadruped-run" "${parts[@]}" ams_{td3,sac}_point:num-neighbors=1:epsilon=0 ;;
  smoke) add 0 walker-walk {ppo,{,ams_}{td3,sac}:learning-starts=1000:batch-size=64}:num-envs=2:eval-episodes=1 ;;
  esac
done
for value in $tasks $algorithms $seeds; do
  [[ $known == *" $value "* ]] || die "$value is in no run of$suites; --list shows what there is"
done
((${#runs[@]})) || die "--tasks, --algorithms and --seeds leave no run of$suites"
[[ $mode == list ]] && printf "%s\n" "${runs[@]#* * }" && exit
"$python" -c "import tyro" 2>/dev/null || die "$python can't import tyro; activate the environment, or set PYTHON"

tell=' # How far the runs are, and why some failed. Exit status: 0 all are done, 75 the others are running, 1 otherwise.
import collections, fcntl, json, pathlib, sys
counts, total = collections.Counter(), collections.Counter()
for name, steps, *_ in map(str.split, sys.argv[1:]):
    result, log = pathlib.Path("runs", name, "result.json"), pathlib.Path("runs", name + ".log")
    said = (log.read_text() if log.exists() else "").splitlines()[-2:] or [""]
    state = "unfinished" if result.parent.exists() else "missing"
    if result.exists():
        trained = json.loads(result.read_text())["global_step"]
        state = "done" if trained >= int(steps) else f"complete with only {trained} steps"
    if said[-1].startswith("exit status") and not (result.exists() and result.stat().st_mtime > log.stat().st_mtime):
        state = f"failed: {log}: {said[-1]}: {said[0]}"
    try:
        fcntl.lockf(open(result.parent / ".lock"), fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        state = state if isinstance(error, FileNotFoundError) else "running"
    counts[name.rsplit("__", 1)[0], state] += 1
    total[state.split(":")[0]] += 1
for (variant, state), count in sorted(counts.items(), key=lambda item: (item[0][1].startswith("failed"), item[0])):
    print(f"{variant:40}{count:4} {state}")
print(f"{len(sys.argv) - 1} runs:", ", ".join(f"{count} {state}" for state, count in sorted(total.items())))
sys.exit(0 if set(total) == {"done"} else 75 if set(total) <= {"done", "running"} else 1)'
[[ $mode == status ]] && { "$python" -c "$tell" "${runs[@]}"; exit 0; }
check=' # What is behind -- must suit every script of the selection: the first run of each is tried.
import importlib, shlex, sys, tyro
for script, *words in {words[4]: words[4:] for words in map(shlex.split, sys.argv[1:])}.values():
    Args = importlib.import_module(script[:-3]).Args
    if unknown := tyro.cli(Args, prog=script, args=words, return_unknown_args=True)[1]:
        sys.exit(f"run_all.sh: error: {script} does not know {unknown[0]}")'
((${#extra[@]} == 0)) || "$python" -c "$check" "${runs[@]}" || exit 2

train() { # [GPU ...] RUN, in a shell of its own, in one of the slots of xargs
  trap stopping=yes URG                    # which neither xargs nor the scripts notice
  kill -0 "$SWEEP" 2>/dev/null || exit 255 # the sweep was killed; 255 makes xargs stop
  (($# == 1)) || export CUDA_VISIBLE_DEVICES="${*:SLOT % ($# - 1) + 1:1}"
  read -r name steps command <<<"${!#}" && where=$HOSTNAME${CUDA_VISIBLE_DEVICES:+, GPU $CUDA_VISIBLE_DEVICES}
  [[ -z $EXTRA ]] && grep -qs "\"global_step\": $steps," "runs/$name/result.json" && return
  printf "%(%F %T)T %s: %s\n" -1 "$where" "$command" | tee -a "runs/$name.log"
  eval "$command" >>"runs/$name.log" 2>&1
  status=$? words=([0]="done" [75]=elsewhere [130]=stopped [143]=stopped)
  echo "$name: ${words[status]:-failed}: $(tail -n 1 "runs/$name.log")"
  [[ -n ${words[status]:-} ]] || echo "exit status $status" >>"runs/$name.log"
  [[ -z $stopping ]] || exit 255
}
[[ -z $index || -n ${runs[index]:-} ]] || die "there is no run $index; use --array=0-$((${#runs[@]} - 1))"
[[ -z $index ]] || runs=("${runs[index]}")
gpus=${gpus:-${CUDA_VISIBLE_DEVICES-$(nvidia-smi -L 2>/dev/null | sed -n 's/^GPU \([0-9]*\).*/\1/p')}}
read -r -d "" -a gpu_list <<<"${gpus//,/ }"
cores=$(env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
((jobs)) || ((jobs = cores / 9, most = 4 * ${#gpu_list[@]}, jobs = most && jobs > most ? most : jobs ? jobs : 1))
xargs --process-slot-var=SLOT true </dev/null 2>/dev/null || die "needs GNU xargs; macOS: brew install findutils"
mkdir -p runs || exit 2
echo "${#runs[@]} runs, $jobs at once ($cores cores, GPUs: ${gpu_list[*]:-none}); logs: $PWD/runs/"
export -f train && export SWEEP=$$ EXTRA="${extra[*]}" stopping="" waited=0
trap "" PIPE # from a `| tee` that Ctrl-C ends
for signal in INT TERM HUP USR1; do
  trap "stopping=$signal; echo 'SIG$signal: the runs save their checkpoints' 2>/dev/null" "$signal"
done
set -m # xargs gets a process group, so that signals reach all that it starts; one that meets a start is lost, and sent again
(trap "" INT TERM HUP TTOU && exec xargs -0 -n 1 -P "$jobs" --process-slot-var=SLOT bash -c 'train "$@" 2>&1' - \
  "${gpu_list[@]}" 2>/dev/null) < <(printf "%s\0" "${runs[@]}") &
while kill -0 $! || ps -A -o pgid= -o stat= | grep -q "^ *$!  *[^Z ]"; do # xargs does not wait for all after a 255
  if [[ -z $stopping ]]; then wait $! || sleep 1; else sleep 1; fi
  [[ -n $stopping ]] && ((waited++ % 10 == 0)) && kill -URG -- -$! && kill -TERM -- -$!
done 2>/dev/null
told=$("$python" -c "$tell" "${runs[@]}") && status=0 || status=$?
echo "$told" 2>/dev/null
[[ $stopping == USR1 && $status != 0 && -n ${SLURM_JOB_ID:-} ]] &&
  scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${index:+_$index}"
[[ -z $stopping ]] || exit $((128 + $(kill -l "$stopping")))
exit "$status"
