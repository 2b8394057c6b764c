#!/usr/bin/env bash
# README's two commands with every Python from 3.11 to 3.14 on this machine (on PATH, or pyenv's): each in a new clone of
# what is committed. Prints a table of what happened; the status is 1 if a command failed.
#
#     bash tests/pythons.sh              # install, train, test
#     bash tests/pythons.sh --no-tests   # install and train
set -uo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
tests=yes
if [ "${1:-}" = --no-tests ]; then
  tests=no
fi

# The commands, as README has them: to install, to train, to install and test.
mapfile -t commands < <(grep -E '^ {4}(python3 -m venv|\.venv/bin/python) ' "$root/README.md")
if [ "${#commands[@]}" != 3 ]; then
  echo "tests/pythons.sh: error: README.md has ${#commands[@]} lines of its two commands, not 3" >&2
  exit 1
fi
install="${commands[0]#    }"
train="${commands[1]#    }"
test="${commands[2]#    }"

# Prints the first Python of a version ($1, such as 3.12) that works: a pyenv shim is on PATH even where it does not.
find_python() {
  local candidate
  for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python3; do
    if "$candidate" -c 'import ensurepip, venv' 2> /dev/null; then
      command -v "$candidate"
      return
    fi
  done
}

# Runs a command ($2) of README's by a Python ($1), into a log ($3); prints the log's last line, and whether it failed.
try() {
  local status=0 last
  bash -c "${2//python3 -m venv/$1 -m venv}" > "$3" 2>&1 < /dev/null || status=$?
  last="$(grep -v '^ *$' "$3" | tail -n 1)"
  if [ "$status" != 0 ]; then
    echo "FAILED, status $status ($3): $last"
    return 1
  fi
  echo "$last"
}

folder="$(mktemp -d)"
table=("| Python | install and train | test |" "|---|---|---|")
failed=0
for version in 3.11 3.12 3.13 3.14; do
  python="$(find_python "$version")"
  if [ -z "$python" ]; then
    table+=("| $version | not on this machine | |")
    continue
  fi
  git clone -q "$root" "$folder/$version" || exit 1
  cd "$folder/$version" || exit 1
  trained="$(try "$python" "$install && $train" "$folder/train-$version.log")" || failed=1
  tested="not asked for"
  if [ "$tests" = yes ]; then
    tested="$(try "$python" "$test" "$folder/test-$version.log")" || failed=1
  fi
  table+=("| $("$python" --version) | $trained | $tested |")
  cd "$folder" || exit 1
  rm -rf "${folder:?}/$version"
done
printf '%s\n' "${table[@]}"
echo "logs: $folder"
exit "$failed"
