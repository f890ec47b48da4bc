#!/usr/bin/env bash
# Accuracy against size on digits, 64-256-256-10 as tensor trains of rank 2 to 48, three seeds: the paper's form of NN-BCD and
# the one with extrapolation and continuation (300 sweeps each), direct learning of the cores, and dense training that is
# compressed afterwards (30 epochs each). 84 runs, then one report over all of them:
#   scripts/pareto_digits.sh outputs/pareto
set -eu
out=${1:?usage: scripts/pareto_digits.sh FOLDER}
common="model=tt_mlp model.widths=[256,256] compression.rank=2,4,8,12,16,32,48 seed=0,1,2 eval_every=50"
for solver in nnbcd nnbcd_inertial direct_learning adam; do
  steps=300
  case $solver in direct_learning | adam) steps=30 ;; esac
  # shellcheck disable=SC2086
  nncompress train -m solver=$solver solver.num_steps=$steps $common hydra.sweep.dir="$out/$solver"
done
nncompress report "$out"
