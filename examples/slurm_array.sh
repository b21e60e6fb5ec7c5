#!/bin/bash
# Runs a study on a SLURM cluster, one run per task. Submit it from a clone of the repository:
#
#   .venv/bin/python -m supcon_tf.studies.stability --recipe=digits --study_dir=runs/stability --list | wc -l
#   sbatch --array=0-95 examples/slurm_array.sh stability --recipe=digits --study_dir=runs/stability
#
# The first line prints the number of runs; the last task is that number minus 1. When all tasks are
# finished, the same command of the study without --task skips the runs and writes the table:
#
#   .venv/bin/python -m supcon_tf.studies.stability --recipe=digits --study_dir=runs/stability
#
# A task that is stopped is resumed by submitting the array again; finished tasks end at once.
#SBATCH --job-name=supcon_study
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail

study=$1
shift
exec .venv/bin/python -m "supcon_tf.studies.$study" --task="$SLURM_ARRAY_TASK_ID" "$@"
