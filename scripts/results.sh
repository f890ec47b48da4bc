#!/usr/bin/env bash
# RESULTS.md from what `nncompress reproduce` has left in a folder, its tables made anew:
#   scripts/results.sh outputs/reproduce > RESULTS.md
set -eu
out=${1:?usage: scripts/results.sh FOLDER > RESULTS.md}
cat << 'HEAD'
# Results

What was really run, beside what was published. Made by `nncompress reproduce` ([how](docs/reproduce.md)) and `scripts/results.sh`; every row is either
measured, with its command, hardware and date in the studies' tables, or marked not measured with the reason. Verdicts, tolerances and how sizes are
counted: [docs/reproduce.md](docs/reproduce.md), [docs/counting.md](docs/counting.md).

HEAD
for scale in cpu gpu; do
  for paper in nnbcd lc sparsefw slimming cross; do
    folder=$out/$paper/$scale
    [ -f "$folder/reproduce.json" ] || continue
    nncompress report "$folder" > /dev/null
    cat "$folder/results.md"
    echo
  done
done
