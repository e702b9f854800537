#!/usr/bin/env bash
# A sweep: one job of an array for each line of a file, which holds the words of one trial.
# Use: sbatch --array=1-4 scripts/slurm/array.sh trials.txt pretrain model=gpt/small
# with trials.txt:
#     optim.lr=1e-3 run.seed=1
#     optim.lr=3e-4 run.seed=1
#     ...
# Each trial gets a run directory of its own (its name holds a hash of the settings); where the words give a
# run.name, the lines have to as well. Quotes in a line work as in a shell.
#
# Never run on a cluster: tried out with stand-ins for Slurm's commands only (tests/launch/test_slurm.py).
#
# Change what your cluster needs:
#SBATCH --job-name=llmtrain-sweep
#SBATCH --array=1-4%2
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --output=%x-%A-%a.log
# Leave as it is: five minutes before the time is up (and before preemption, where the cluster is set up to
# tell) Slurm sends SIGUSR1 to this script. The trial saves and its job is queued again.
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

set -uo pipefail
trials="${1:?give a file with one trial in a line, and the words of llmtrain}"
shift
: "${1:?give the words of llmtrain after the file, for example: pretrain model=gpt/small}"

# source /path/to/.venv/bin/activate     # where llmtrain is installed
# cd /shared/experiments                 # runs/ is made here, unless run.dir=... says where
# export HF_HUB_OFFLINE=1                # compute nodes without the internet

line="$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$trials")"
if [[ -z $line ]]; then
    echo "error: $trials has no line $SLURM_ARRAY_TASK_ID" >&2
    exit 2
fi
mapfile -t trial < <(xargs printf '%s\n' <<<"$line")

llmtrain "$@" "${trial[@]}" &
run=$!

# `wait` returns early when a signal comes, with a code of its own: only a wait without a signal counts.
trap 'signalled=yes; kill -USR1 "$run"' USR1
signalled=yes
while [[ $signalled == yes ]]; do
    signalled=no
    wait "$run"
    code=$?
done

# 75: saved, please requeue. The requeued job goes on from there: it runs the same words.
if [[ $code -eq 75 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
