#!/usr/bin/env bash
# The published tables: every figure is made by `sard-lora benchmark` alone.
#
#     benchmarks/tables.sh final DATA [WORKERS]        # all methods, three seeds, the test side
#     benchmarks/tables.sh ablations DATA [WORKERS]    # what each part is worth, two seeds, the dev side
#     benchmarks/tables.sh shortcut DATA [WORKERS]     # can what was written be told from what was not?
#
# DATA holds magnetic_tile and pv_cell_4bb; pictures of a part that another side shows too are left out (parts.py).
# Stopped and started again it goes on, here or, from the figures in results/figures.json, on another machine. On a GPU
# as many WORKERS as cores are worth it, under NVIDIA's MPS (nvidia-cuda-mps-control -d), without which processes on one
# GPU wait for one another.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-} data=$(realpath "${2:-.}") workers=${3:-1}
python=${PYTHON:-.venv/bin/python} output=${OUTPUT:-runs/table} results=benchmarks/results

case $what in
final)
    options=(--shots 1 --seeds 3 --split test)
    methods=real,paste,sard,cutpaste,draem,inpaint,sard+real,paste+real
    segmenters=unet,segformer
    ;;
ablations)
    options=(--shots 1 --seeds 2 --split dev)
    methods=real,paste,sard
    # strength=0.05 is one step at the least noise: moved real defects, hardly touched by diffusion
    for change in strength=0.05 strength=1 composite=pixels guidance_scale=1 guidance_scale=2 guidance_scale=5 \
        background=frozen background=off critic=false background=frozen,critic=false background=off,critic=false \
        critic_mask_branch=false region=full candidates=1 candidates=3 min_visibility=0 contrast=null \
        min_snr=0 "contrast=[0.4,1.2],min_snr=0" "contrast=[1,1.4],min_snr=0" \
        in_place=0 in_place=0.5 from_noise=0.3 count=50 count=800 decoys=200; do
        methods+=",sard[$change]"
    done
    for shots in 3 5 null; do # null: a third of all parts
        methods+=",real[shots=$shots],paste[shots=$shots],sard[shots=$shots]"
    done
    segmenters=unet
    ;;
shortcut)
    options=(--shots 1 --seeds 1 --split dev --fills 200)
    methods=real,paste,cutpaste,draem,inpaint,sard
    segmenters=unet
    ;;
*)
    sed -n '2,12p' "$0"
    exit 2
    ;;
esac
run() {
    "$python" -m sard_lora.cli benchmark --data "$1" "${options[@]}" --methods "$methods" --segmenters "$segmenters" \
        --output "$output" --workers "$workers"
}

"$python" benchmarks/parts.py "$data" "$output/data"
data=$output/data
[ ! -f $results/figures.json ] || "$python" benchmarks/figures.py unpack "$output" $results/figures.json
trap '"$python" benchmarks/figures.py pack "$output" $results/figures.json' EXIT # also of one that was stopped
run "$data"
for name in magnetic_tile pv_cell_4bb; do
    run "$data/$name"
    suffix=$([ "$what" = final ] || echo "_$what")
    cp "$output/benchmark.json" "$results/$name$suffix.json"
    cp "$output/benchmark.md" "$results/$name$suffix.md"
done
