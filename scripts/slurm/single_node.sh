#!/usr/bin/env bash
# One node. Use: sbatch scripts/slurm/single_node.sh pretrain model=gpt/small 'data.paths=[my.txt]'
# The words are those of `llmtrain` anywhere else; it starts one process per GPU, and all of them again when
# one is lost.
#
# Never run on a cluster: tried out with stand-ins for Slurm's commands only (tests/launch/test_slurm.py).
#
# Change what your cluster needs:
#SBATCH --job-name=llmtrain
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
# Leave as it is: five minutes before the time is up (and before preemption, where the cluster is set up to
# tell) Slurm sends SIGUSR1 to this script. The run saves and the job is queued again, under the same number.
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

set -uo pipefail
: "${1:?give the words of llmtrain, for example: pretrain model=gpt/small}"

# source /path/to/.venv/bin/activate     # where llmtrain is installed
# cd /shared/experiments                 # runs/ is made here, unless run.dir=... says where
# export HF_HUB_OFFLINE=1                # compute nodes without the internet

llmtrain "$@" &
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
