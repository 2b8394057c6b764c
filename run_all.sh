#!/usr/bin/env bash
# Trains every run behind the paper's tables and figures: bash run_all.sh --help
# Slurm: an array's task trains one run; sbatch's arguments win; USR1 comes 3 minutes before the end.
#SBATCH --job-name=ams --requeue --open-mode=append --signal=B:USR1@180
#SBATCH --gres=gpu:1 --cpus-per-task=9 --mem=16G --time=08:00:00

usage() { # ends the program
  cat <<'TEXT'
Train, or go on: bash run_all.sh [SUITE ...] [OPTION ...] [-- ARGUMENTS FOR EVERY SCRIPT]
Suites: table2 table3 (default), sampling, controls (NTD, LayerNorm or the missing noise?), smoke
  --tasks LIST        only these tasks, separated by commas
  --algorithms LIST   only these scripts, such as td3,ams_td3
  --seeds LIST        only these seeds
  --list              print the commands, to be pasted in the project's folder
  --status            print how far the runs are, and why some failed
  --jobs N            runs at once (default: one for 9 cores, at most 4 on a GPU)
  --gpus LIST         GPUs to use in turn (default: CUDA_VISIBLE_DEVICES, or all)
Environment: PYTHON, the interpreter (default: python); OMP_NUM_THREADS, a learner's threads (1)
TEXT
  exit
}

die() { # MESSAGE
  echo "run_all.sh: error: $1" >&2
  exit 2
}

# Older ones take an empty array for an unset variable. The syntax up to here is one that bash 3.2 and dash read too.
case ${BASH_VERSION:-0.} in
[0-3].* | 4.[0-3].*) die "needs bash 4.4 or newer; macOS: brew install bash" ;;
esac
set -u

# ------------------------------------------------------------------------------------------------- arguments
suites=()
extra=() # what is behind --
mode=train
declare -A option=([--tasks]="" [--algorithms]="" [--seeds]="" [--jobs]="" [--gpus]="")
while (($# > 0)); do
  if [[ $1 == --?*=* ]]; then
    set -- "${1%%=*}" "${1#*=}" "${@:2}"
  fi
  case $1 in
  table2 | table3 | sampling | controls | smoke) suites+=("$1") ;;
  --list | --status) mode=${1#--} ;;
  --tasks | --algorithms | --seeds | --jobs | --gpus)
    [[ ${2:-} == [!-]* ]] || die "$1 needs a value"
    option[$1]=${2//,/ }
    shift
    ;;
  -h | --help) usage ;;
  --)
    extra=("${@:2}")
    break
    ;;
  *) die "$1 is unknown; known: table2 table3 sampling controls smoke, and the options that --help lists" ;;
  esac
  shift
done
if ((${#suites[@]} == 0)); then
  suites=(table2 table3)
fi
jobs=${option[--jobs]}
[[ $jobs =~ ^([1-9][0-9]{0,3})?$ ]] || die "--jobs needs a positive number, not $jobs"
chosen="env-id|exp-name|seed|run-dir|resume|no-resume|overwrite|no-overwrite|evaluate"
if [[ " ${extra[*]//_/-} " =~ \ --($chosen)[\ =] ]]; then
  die "--${BASH_REMATCH[1]} can't be given behind --, because run_all.sh chooses the run and its directory"
fi
budget=""
if [[ " ${extra[*]}" =~ .*\ --total[-_]timesteps[\ =]([0-9_]+) ]]; then # the last one, which wins
  budget=${BASH_REMATCH[1]//_/}
fi

python=${PYTHON:-python}
found=$(command -v "$python")
if [[ $found == */* && $found != /* ]]; then
  python=$PWD/$found # before the folder changes
fi
project=$(dirname "$0")
if [[ ! -f $project/td3.py ]]; then
  project=${SLURM_SUBMIT_DIR:-$project} # Slurm runs a copy of this file
fi
CDPATH="" cd -- "$project" || exit 2
[[ -f td3.py ]] || die "no td3.py beside run_all.sh, nor where sbatch was called"

# -------------------------------------------------------------------------------------------------- the runs
declare -A length=([dog-run]=1000000 [humanoid-run]=1000000 [walker-walk]=1100) # else 500,000 steps
names=()     # of the runs, their directories and logs: TASK__VARIANT__SEED
arguments=() # a run's script and its arguments
steps=()     # how long it is
known=()     # tasks, scripts and seeds of the suites, whether filtered or not

wanted() { # VALUE LIST: whether the list has the value, or nothing
  [[ -z $2 || " $2 " == *" $1 "* ]]
}

add() { # TASK SEED SCRIPT SUFFIX [FLAG ...]: one run, if the filters leave it in and it is not there yet
  local name=$1__$3${4}__$2 default=${length[$1]:-500000}
  known+=("$1" "$2" "$3")
  if ! wanted "$1" "${option[--tasks]}" || ! wanted "$2" "${option[--seeds]}" ||
    ! wanted "$3" "${option[--algorithms]}" || [[ " ${names[*]} " == *" $name "* ]]; then
    return
  fi
  names+=("$name")
  arguments+=("$3.py --env-id $1 --exp-name $3$4 --seed $2 --total-timesteps $default ${*:5} --resume")
  steps+=("${budget:-$default}")
}

add_parts() { # TASK SEED: TD3 and SAC, AMS on them, and AMS without one of its parts
  local script
  add "$1" "$2" td3 ""
  add "$1" "$2" sac ""
  for script in ams_td3 ams_sac; do
    add "$1" "$2" "$script" ""
    add "$1" "$2" "$script" _no_ntd --no-ntd
    add "$1" "$2" "$script" _no_layer_norm --no-layer-norm
  done
}

# The suites go seed by seed, so that there is a whole table early.
table2() {
  local seed task script
  for seed in 0 10 42 77 123; do
    for task in cheetah-run humanoid-run quadruped-walk quadruped-run dog-stand dog-walk dog-trot dog-run \
      h1-sit h1-slide h1-walk h1-run; do
      for script in ppo td3 sac ams_td3 ams_sac; do
        add "$task" "$seed" "$script" ""
      done
    done
  done
}

table3() {
  local seed value
  for seed in 0 42 123; do
    add_parts quadruped-run "$seed"
    for value in 0.4 0.6 0.8; do
      add quadruped-run "$seed" ams_td3 "_eps$value" --epsilon "$value"
    done
    for value in 4 6 10; do
      add quadruped-run "$seed" ams_td3 "_k$value" --num-neighbors "$value"
    done
  done
}

sampling() {
  local seed task
  for seed in 0 42 123; do
    for task in quadruped-run dog-run; do
      add "$task" "$seed" ams_td3 ""
      add "$task" "$seed" ams_td3 _antithetic --sampling antithetic
      add "$task" "$seed" ams_td3 _gaussian --sampling gaussian
    done
  done
}

controls() {
  local seed task
  for seed in 0 42 123; do
    for task in dog-stand dog-run quadruped-run; do
      add_parts "$task" "$seed"
      add "$task" "$seed" ams_td3 _point --num-neighbors 1 --epsilon 0
      add "$task" "$seed" ams_sac _point --num-neighbors 1 --epsilon 0
    done
  done
}

smoke() {
  local script
  add walker-walk 0 ppo "" --num-envs 2 --eval-episodes 1
  for script in td3 sac ams_td3 ams_sac; do
    add walker-walk 0 "$script" "" --learning-starts 1000 --batch-size 64 --num-envs 2 --eval-episodes 1
  done
}

set_command() { # INDEX: sets `command` to the words of a run's command, and `line` to what a shell reads as such
  read -r -a command <<<"${arguments[$1]}"
  command=("$python" "${command[@]}" "${extra[@]}")
  printf -v line "%q " "OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}" "${command[@]}"
  line=${line% }
}

for suite in "${suites[@]}"; do
  "$suite"
done
for value in ${option[--tasks]} ${option[--algorithms]} ${option[--seeds]}; do
  wanted "$value" "${known[*]}" || die "$value is in no run of ${suites[*]}; --list shows what there is"
done
((${#names[@]} > 0)) || die "--tasks, --algorithms and --seeds leave no run of ${suites[*]}"
if [[ $mode == list ]]; then
  for index in "${!names[@]}"; do
    set_command "$index"
    echo "$line"
  done
  exit
fi

# --------------------------------------------------------------------------------------------- how far they are
say() { # TEXT: to a terminal that may be closed, or a pipe that nobody reads any more
  echo "$1" 2>/dev/null
}

set_state() { # INDEX: sets `state` to a word for what has become of a run, and `detail`
  local folder=runs/${names[$1]} complete said
  complete=$(sed -n 's/^  "global_step": \([0-9]*\).*/\1/p' "$folder/result.json" 2>/dev/null) # how many steps
  said=$(tail -n 2 "$folder.log" 2>/dev/null)
  detail=${names[$1]%__*}
  if [[ $said =~ failed,\ exit\ status\ [0-9]+$ && $folder.log -nt $folder/result.json ]]; then
    state=failed
    detail="$folder.log: ${said/$'\n'/: }"
  elif ((complete >= steps[$1])); then
    state="done"
  elif [[ ! -d $folder ]]; then
    state=missing
  else
    state=running # or killed less than ten minutes ago
    if [[ -n $complete || $said =~ stopped,\ exit\ status\ [0-9]+$ || -z $(find "$folder" -mmin -10) ]]; then
      state=unfinished
    fi
    said=$(tail -n 1 "$folder/evaluations.csv" 2>/dev/null)
    detail="${names[$1]}: evaluated up to step ${said%%,*} of ${steps[$1]}"
  fi
}

tell() { # INDEX ...: prints how far the runs are; sets `status` to what the sweep ends with
  local lines=() states=() index state detail
  for index in "$@"; do
    set_state "$index"
    states+=("$state")
    lines+=("$state $detail")
  done
  say "$(printf "%s\n" "${lines[@]}" | sort | uniq -c)"
  say "$# runs:$(printf "%s\n" "${states[@]}" | sort | uniq -c | tr -s " \n" " ")"
  case " ${states[*]} " in
  *" failed "* | *" missing "* | *" unfinished "*) status=1 ;;
  *" running "*) status=75 ;;
  *) status=0 ;;
  esac
}

if [[ $mode == status ]]; then
  tell "${!names[@]}"
  exit 0
fi

# -------------------------------------------------------------------------------------------------- training
"$python" -c "import tyro" 2>/dev/null || die "$python can't import tyro; activate the environment, or set PYTHON"
todo=("${!names[@]}")
task=${SLURM_ARRAY_TASK_ID:-}
if [[ -n $task ]]; then
  [[ -n ${names[task]:-} ]] || die "there is no run $task; use --array=0-$((${#names[@]} - 1))"
  todo=("$task")
fi
gpus=${option[--gpus]:-${CUDA_VISIBLE_DEVICES-$(nvidia-smi -L 2>/dev/null | sed -n 's/^GPU \([0-9]*\).*/\1/p')}}
read -r -d "" -a gpus <<<"${gpus//,/ }"
cores=$(env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) # GNU's nproc heeds that variable
if [[ -z $jobs ]]; then
  jobs=$((cores < 9 ? 1 : cores / 9))
  if ((${#gpus[@]} > 0 && jobs > 4 * ${#gpus[@]})); then
    jobs=$((4 * ${#gpus[@]}))
  fi
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

pids=()     # of the runs in the slots
training=() # their indices
stopping="" # the signal that came, or `mistake`
endings=([0]="done" [75]=elsewhere [129]=stopped [130]=stopped [143]=stopped) # else it failed

stop() { # SIGNAL: the runs save and end; a second Ctrl-C ends them at once
  if [[ $1 == INT && $stopping == INT ]]; then
    kill -KILL "${pids[@]}" 2>/dev/null
    return
  fi
  stopping=$1
  say "SIG$1: the runs save their checkpoints"
  sleep 1 # a run that is being started loses a signal that comes before its program does
  kill -TERM "${pids[@]}" 2>/dev/null
}
trap "stop INT" INT
trap "stop TERM" TERM
trap "stop HUP" HUP # under nohup it stays ignored, here and in the runs
trap "stop USR1" USR1
trap "" PIPE # of a `| tee` that Ctrl-C ends

start() { # SLOT INDEX: trains a run in the background, if it is not complete
  local state detail line log=runs/${names[$2]}.log
  set_state "$2"
  if [[ ${#extra[@]} == 0 && $state == "done" ]]; then
    return
  fi
  if ((${#gpus[@]} > 0)); then
    export CUDA_VISIBLE_DEVICES=${gpus[$1 % ${#gpus[@]}]}
  fi
  set_command "$2"
  printf -v line "%(%F %T)T %s: %s" -1 "$HOSTNAME${CUDA_VISIBLE_DEVICES:+, GPU $CUDA_VISIBLE_DEVICES}" "$line"
  say "$line"
  echo "$line" >>"$log"
  "${command[@]}" >>"$log" 2>&1 &
  pids[$1]=$!
  training[$1]=$2
  if [[ -n $stopping ]]; then # the signal came a moment ago
    sleep 1
    kill -TERM "${pids[@]}" 2>/dev/null
  fi
}

finish() { # SLOT: tells what became of its run, which has ended
  local index=${training[$1]} ended word
  local log=runs/${names[index]}.log
  wait "${pids[$1]}" 2>/dev/null
  ended=$?
  unset "pids[$1]"
  word=${endings[ended]:-failed}
  say "${names[index]}: $word: $(tail -n 1 "$log")"
  if [[ $word == stopped || $word == failed ]]; then
    echo "$word, exit status $ended" >>"$log"
  fi
  if [[ $ended == 2 && $index == "${todo[0]}" && -z $stopping ]]; then
    say "The first run was called wrongly, and so would the others be."
    stopping=mistake
    kill -TERM "${pids[@]}" 2>/dev/null
  fi
}

mkdir -p runs || exit 2
say "${#todo[@]} runs, $jobs at once ($cores cores, GPUs: ${gpus[*]:-none}); logs: $PWD/runs/"
next=0 # in todo
while true; do
  for ((slot = 0; slot < jobs; slot++)); do
    if [[ -n ${pids[slot]:-} ]] && ! kill -0 "${pids[slot]}" 2>/dev/null; then
      finish "$slot"
    fi
    while [[ -z ${pids[slot]:-} && -z $stopping && $next -lt ${#todo[@]} ]]; do
      start "$slot" "${todo[next]}"
      next=$((next + 1))
    done
  done
  ((${#pids[@]} > 0)) || break
  sleep 1
done

tell "${todo[@]}"
if [[ $stopping == USR1 && $status != 0 && -n ${SLURM_JOB_ID:-} ]]; then
  scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${task:+_$task}"
fi
if [[ -n $stopping && $stopping != mistake ]]; then
  status=$((128 + $(kill -l "$stopping")))
fi
((status == 0)) || exit "$status"
