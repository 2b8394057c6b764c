#!/usr/bin/env bash
# Defaults for Slurm, where each array task trains one run (README, "On a Slurm cluster"). sbatch's own arguments win:
# --gres=none goes without a GPU. USR1 comes before the time limit: then the task saves, and queues itself again.
#SBATCH --job-name=ams
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=9
#SBATCH --mem=16G
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180
usage="Every run of the paper. What is finished is skipped, what was interrupted goes on: run the same command again.

    bash run_all.sh [SUITE ...] [OPTION ...] [-- ARGUMENTS FOR EVERY SCRIPT]
    sbatch --array=0-299%32 run_all.sh table2        one run a task, 32 at once; --list table2 | wc -l gives the size

Suites (default: table2 table3)
    table2            5 algorithms x 12 tasks x 5 seeds; also Figures 3 and 4
    table3            quadruped-run with and without NTD and LN-Q, epsilon, K; also Figure 5
    sampling          quadruped-run and dog-run with orthogonal, antithetic and Gaussian directions
    smoke             every script for some seconds
Options (lists are separated by commas)
    --tasks LIST, --algorithms LIST, --seeds LIST      only these
    --list            print the commands, to be pasted in the project's folder, instead of running them
    --status          print what is done, running, failed, unfinished and missing
    --jobs N          runs at once (default: one for 9 cores, at most 4 on a GPU)
    --gpus LIST       GPUs to use in turn (default: CUDA_VISIBLE_DEVICES, or all)
Environment
    PYTHON            the interpreter (default: python)
    OMP_NUM_THREADS   threads of a run's learner (default: 1)"

# In syntax that any shell can read: macOS's bash is 3.2, and dash has no BASH_VERSION.
case "${BASH_VERSION:-none}" in
none | [0-3].* | 4.[0-3].*)
  echo "run_all.sh: error: needs bash 4.4 or newer, this is ${BASH_VERSION:-another shell}; macOS: brew install bash" >&2
  exit 2
  ;;
esac
set -u

die() {
  echo "run_all.sh: error: $1" >&2
  exit 2
}

# ------------------------------------------------------------------------------------------------------- arguments

suites="" known_suites="table2 table3 sampling smoke" mode=run jobs="" gpus=""
declare -A filter=([tasks]="" [algorithms]="" [seeds]="") known=([tasks]="" [algorithms]="" [seeds]="")
while (($#)) && [[ $1 != -- ]]; do
  [[ $1 == --?*=* ]] && set -- "${1%%=*}" "${1#*=}" "${@:2}"
  case $1 in
  --tasks | --algorithms | --seeds | --jobs | --gpus)
    [[ ${2:-} == [!-]* ]] || die "$1 needs a value"
    case $1 in
    --jobs) jobs=$2 ;;
    --gpus) gpus=${2//,/ } ;;
    *) filter[${1#--}]+=" ${2//,/ }" ;;
    esac
    shift
    ;;
  --list | --status) mode=${1#--} ;;
  -h | --help) exec echo "$usage" ;;
  -*) die "$1 is unknown; known: --tasks --algorithms --seeds --list --status --jobs --gpus --help" ;;
  *)
    [[ " $known_suites " == *" $1 "* ]] || die "the suite $1 is unknown; known: $known_suites"
    suites+=" $1"
    ;;
  esac
  shift
done
[[ -z $jobs || $jobs =~ ^[1-9][0-9]{0,3}$ ]] || die "--jobs needs a positive number, not $jobs"
extra=("${@:2}") # behind --
for word in "${extra[@]}"; do
  word=${word%%=*} word=${word//_/-}
  case $word in
  --env-id | --exp-name | --seed | --run-dir | --resume | --no-resume | --overwrite | --no-overwrite | --evaluate)
    die "$word can't be given behind --, because run_all.sh chooses the run and its directory"
    ;;
  esac
done

# Slurm runs a copy of this file from its spool folder; the project is then where sbatch was called.
for project in "$(dirname "${BASH_SOURCE[0]}")" "${SLURM_SUBMIT_DIR:-}" "$PWD"; do
  [[ -f $project/ams_td3.py ]] && break
done
[[ -f $project/ams_td3.py ]] || die "ams_td3.py is not beside run_all.sh; with Slurm, call sbatch in the project's folder"
CDPATH="" cd -- "$project" || exit
python=${PYTHON:-python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # or the learners of several runs take each other's cores

# ---------------------------------------------------------------------------------------------------------- suites

names=() commands=() # of the runs; NAME is the directory in runs/, of the log and of the lock, and a command is a line
declare -A budget=() # NAME: its steps

# Adds a run, unless a filter leaves it out or another suite has it.
add() { # SCRIPT EXP_NAME TASK SEED [ARGUMENT ...]
  local name=${3}__${2}__$4 steps=500000 key value command
  for key in "tasks $3" "algorithms $1" "seeds $4"; do
    value=${key#* } key=${key% *}
    [[ " ${known[$key]} " == *" $value "* ]] || known[$key]+=" $value"
    [[ -z ${filter[$key]} || " ${filter[$key]} " == *" $value "* ]] || name=""
  done
  [[ -z $name || " ${names[*]} " == *" $name "* ]] && return
  case $3 in
  humanoid-run | dog-run) steps=1000000 ;;
  walker-walk) steps=1100 ;; # smoke: an episode, 1000 steps, and a bit
  esac
  # --resume starts what has not started, goes on with what has, and leaves alone what is complete.
  printf -v command "%q " "$python" "$1.py" --env-id "$3" --exp-name "$2" --seed "$4" --total-timesteps "$steps" \
    "${@:5}" --resume "${extra[@]}"
  [[ " $command" =~ .*\ --total[-_]timesteps[\ =]([0-9]+) ]] && steps=${BASH_REMATCH[1]} # the last one wins
  names+=("$name") commands+=("${command% }") budget[$name]=$steps
}

table2() { # seed by seed, so that there is a whole table early
  local seed task algorithm
  for seed in 0 10 42 77 123; do
    for task in cheetah-run humanoid-run quadruped-walk quadruped-run dog-stand dog-walk dog-trot dog-run \
      h1-sit h1-slide h1-walk h1-run; do
      for algorithm in ppo sac td3 ams_td3 ams_sac; do add $algorithm $algorithm $task $seed; done
    done
  done
}

table3() {
  local task=quadruped-run seed base epsilon k
  for seed in 0 42 123; do
    for base in td3 sac; do
      add $base $base $task $seed
      add ams_$base ams_$base $task $seed # also epsilon 0.2 and K 8
      add ams_$base ams_${base}_no_ntd $task $seed --no-ntd
      add ams_$base ams_${base}_no_layer_norm $task $seed --no-layer-norm
    done
    for epsilon in 0.4 0.6 0.8; do add ams_td3 ams_td3_eps$epsilon $task $seed --epsilon $epsilon; done
    for k in 4 6 10; do add ams_td3 ams_td3_k$k $task $seed --num-neighbors $k; done
  done
}

sampling() {
  local seed task sampling
  for seed in 0 42 123; do
    for task in quadruped-run dog-run; do
      add ams_td3 ams_td3 $task $seed # orthogonal
      for sampling in antithetic gaussian; do add ams_td3 ams_td3_$sampling $task $seed --sampling $sampling; done
    done
  done
}

smoke() { # on a task that the paper's tables don't have, so that these runs are never taken for the paper's
  local algorithm tiny=(--num-envs 2 --eval-episodes 1 --eval-frequency 1100 --log-frequency 100)
  local learner=(--learning-starts 900 --batch-size 64 --buffer-size 10000)
  for algorithm in td3 ams_td3 sac ams_sac; do add $algorithm $algorithm walker-walk 0 "${tiny[@]}" "${learner[@]}"; done
  add ppo ppo walker-walk 0 "${tiny[@]}" --num-steps 256
}

for suite in ${suites:-table2 table3}; do $suite; done
for key in "${!filter[@]}"; do
  for value in ${filter[$key]}; do
    [[ " ${known[$key]} " == *" $value "* ]] || die "--$key: $value is unknown; known:${known[$key]}"
  done
done
((${#names[@]})) || die "--tasks, --algorithms and --seeds leave no run of${suites:- table2 table3}"
if [[ $mode == list ]]; then
  printf "%s\n" "${commands[@]/#/OMP_NUM_THREADS=$OMP_NUM_THREADS }"
  exit
fi

# ----------------------------------------------------------------------------------------------- the state of a run

# The locks are the kernel's: processes hold them, and they end with these. The files in runs/.sweep just stay there.
command -v flock >/dev/null || die "flock(1) is missing; Debian: apt install util-linux; macOS: brew install flock"
{ mkdir -p runs/.sweep && : >>runs/.sweep/probe && flock -s runs/.sweep/probe true; } ||
  die "$PWD/runs can't be written, or its file system has no locks"

# Sets $state. NAME.failed says how the last attempt failed; the next one removes it.
find_state() { # NAME
  state=missing
  [[ -d runs/$1 ]] && state=unfinished
  [[ -e runs/.sweep/$1.failed ]] && state=failed
  [[ -e runs/.sweep/$1.lock ]] && ! flock -n -s "runs/.sweep/$1.lock" true && state=running
  [[ -e runs/$1/result.json ]] && state="done"
  # Trained to its end, but with a smaller --total-timesteps: not what is asked for here, and nothing to be overwritten.
  [[ $state == "done" && $(grep '"global_step"' "runs/$1/result.json") =~ ([0-9]+) ]] &&
    ((BASH_REMATCH[1] < budget[$1])) && state=shorter
}

# Prints how many runs are in which state, and what failed; with --status, for each task and variant too.
report() {
  local name key failures=()
  declare -gA count=()
  for name in "${names[@]}"; do
    find_state "$name"
    for key in "$state" "${name%__*} $state"; do count[$key]=$((${count[$key]:-0} + 1)); done
    [[ $state == failed ]] && failures+=("failed: runs/$name.log: $(<"runs/.sweep/$name.failed")")
    [[ $state == shorter ]] && failures+=("complete with fewer than ${budget[$name]} steps, remove it to train anew: runs/$name")
  done
  if [[ $mode == status ]]; then
    printf "%-16s%-24s%6s%9s%8s%12s%9s\n" task run "done" running failed unfinished missing
    printf "%s\n" "${names[@]%__*}" | awk '!seen[$0]++' | while read -r name; do
      printf "%-16s%-24s%6d%9d%8d%12d%9d\n" "${name%%__*}" "${name#*__}" "${count[$name done]:-0}" \
        "${count[$name running]:-0}" "${count[$name failed]:-0}" "${count[$name unfinished]:-0}" "${count[$name missing]:-0}"
    done
  fi
  echo "${#names[@]} runs: ${count[done]:-0} done, ${count[running]:-0} running, ${count[failed]:-0} failed," \
    "${count[unfinished]:-0} unfinished, ${count[missing]:-0} missing"
  ((${#failures[@]} == 0)) || printf "%s\n" "${failures[@]}"
}

if [[ $mode == status ]]; then
  report
  exit
fi

# --------------------------------------------------------------------------------------------------------- running

command -v "$python" >/dev/null || die "there is no $python; activate the environment, or set PYTHON"
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
  ((SLURM_ARRAY_TASK_ID < ${#names[@]})) ||
    die "there is no run $SLURM_ARRAY_TASK_ID of ${#names[@]}; use --array=0-$((${#names[@]} - 1))"
  names=("${names[SLURM_ARRAY_TASK_ID]}") commands=("${commands[SLURM_ARRAY_TASK_ID]}")
fi
: "${gpus:=${CUDA_VISIBLE_DEVICES-$(nvidia-smi -L 2>/dev/null | awk '/^GPU/ { print NR - 1 }')}}"
read -r -d "" -a gpu_list <<<"${gpus//,/ }"
cores=$(env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
if [[ -z $jobs ]]; then
  jobs=$((cores / 9)) most=$((4 * ${#gpu_list[@]}))
  ((most && jobs > most)) && jobs=$most
fi
((jobs > ${#names[@]})) && jobs=${#names[@]}
((jobs)) || jobs=1
echo "${#names[@]} runs, $jobs at once ($cores cores, GPUs: ${gpu_list[*]:-none}); logs: $PWD/runs/*.log"

stopping="" # the signal that ends the sweep
declare -A old_failures=()
for name in "${names[@]}"; do
  [[ -e runs/.sweep/$name.failed ]] && old_failures[$name]=$(<"runs/.sweep/$name.failed")
done

# Whether there is nothing left to do: the run is done, or has failed since this sweep began, in any sweep.
settled() { # NAME
  local failed=runs/.sweep/$1.failed
  [[ -e runs/$1/result.json ]] || { [[ -e $failed ]] &&
    { [[ ! -v old_failures[$1] ]] || [[ $(<"$failed") != "${old_failures[$1]}" ]]; }; }
}

# In a worker: whether the sweep itself was killed. Then nothing goes on behind its back.
orphaned() {
  local self=$BASHPID parent
  { read -r _ _ _ parent _ <"/proc/$self/stat" || parent=$(ps -o ppid= -p "$self"); } 2>/dev/null
  ((self != $$ && parent != $$))
}

# Waits for processes to end. To stop, they get SIGTERM every second, since a signal that meets a fork can be lost.
await() { # PID ...
  local pid alive
  while :; do
    alive=()
    for pid; do kill -0 "$pid" 2>/dev/null && alive+=("$pid"); done
    ((${#alive[@]})) || return 0
    orphaned && stopping=KILL
    [[ -n $stopping ]] && kill -TERM "${alive[@]}" 2>/dev/null
    { sleep 1; } 2>/dev/null
  done
}

# A run whose worker is killed gets SIGTERM from the kernel, where util-linux can arrange that.
guard=""
setpriv --pdeathsig TERM true 2>/dev/null && guard="setpriv --pdeathsig TERM"

# Trains run INDEX, unless somebody else does or has done so.
train() { # INDEX
  local name=${names[$1]} label log lock child status
  label="[$(($1 + 1))/${#names[@]}] $name" log=runs/$name.log
  exec {lock}>>"runs/.sweep/$name.lock" || return
  if flock -n "$lock" && ! settled "$name"; then
    rm -f "runs/.sweep/$name.failed"
    echo "$label: ${CUDA_VISIBLE_DEVICES:+GPU $CUDA_VISIBLE_DEVICES, }$log"
    printf "%(%F %T)T %s: %s\n" -1 "$HOSTNAME" "${commands[$1]}" >>"$log"
    eval "exec $guard ${commands[$1]}" >>"$log" 2>&1 & # inherits the lock, which so outlives this shell if that is killed
    child=$!
    await "$child"
    wait "$child"
    status=$?
    # 130, 143: Ctrl-C reaches a run directly, and maybe before this shell hears of it.
    [[ -z $stopping ]] && ((status == 130 || status == 143)) && sleep 3
    if [[ -e runs/$name/result.json ]]; then
      echo "$label: done"
    elif [[ -n $stopping ]]; then
      echo "$label: stopped"
    elif tail -n 1 "$log" | grep -q "another process is training in"; then
      echo "$label: is being run by hand"
    else
      printf "exit status %d, %(%F %T)T, %s\n" "$status" -1 "$HOSTNAME" >"runs/.sweep/$name.failed"
      echo "$label: failed, exit status $status: $log"
    fi
  fi
  exec {lock}>&-
}

# Goes through the runs once. The workers, of this sweep and of others, share them out by the locks alone.
work() { # WORKER
  local index
  trap "" INT HUP # the sweep hears these and sends SIGTERM; a run does not notice that its terminal is closed
  trap stopping=TERM TERM
  ((${#gpu_list[@]})) && export CUDA_VISIBLE_DEVICES=${gpu_list[$1 % ${#gpu_list[@]}]}
  for index in "${!names[@]}"; do
    [[ -n $stopping ]] || orphaned && return
    settled "${names[index]}" || train "$index"
  done
}

for signal in INT TERM HUP USR1; do
  # shellcheck disable=SC2064 # expands now
  trap "stopping=$signal; echo 'SIG$signal: waiting for the runs to save their checkpoints'" "$signal"
done
left=-1
while [[ -z $stopping ]]; do
  workers=()
  for ((worker = 0; worker < jobs; worker++)); do
    work "$worker" &
    workers+=($!)
  done
  await "${workers[@]}"
  before=$left left=0
  for name in "${names[@]}"; do settled "$name" || ((left += 1)); done
  [[ $left == 0 || -n $stopping ]] && break
  ((left == before)) || echo "waiting for $left runs that somebody else has"
  { sleep 5; } 2>/dev/null
done

report
if [[ $stopping == USR1 && -n ${SLURM_JOB_ID:-} ]] && ((left)); then
  echo "the time limit is near: this job queues itself again, to go on from the checkpoint"
  # By its array's id and index: the last task's own id is also the id of the whole array.
  scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
fi
[[ -z $stopping ]] || exit $((128 + $(kill -l "$stopping")))
((${count[done]:-0} == ${#names[@]}))
