#!/usr/bin/env bash
# The published tables, made by `sard-lora benchmark`.
#
#     benchmarks/tables.sh final DATA [WORKERS]        # all methods, three seeds, the test side
#     benchmarks/tables.sh ablations DATA [WORKERS]    # what each part is worth, one seed, the dev side
#     benchmarks/tables.sh shortcut DATA [WORKERS]     # can what was written be told from what was not?
#
# DATA holds magnetic_tile and pv_cell_4bb; pictures of a part that another side shows too are left out (parts.py).
# Stopped and started again it goes on, here or, from the figures in results/figures.json, on another machine. On a GPU
# as many WORKERS as cores are worth it, under NVIDIA's MPS (nvidia-cuda-mps-control -d), without which processes on one
# GPU wait for one another.
set -feuo pipefail
what=${1:-} data=$(realpath "${2:-.}") workers=${3:-1}
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python} output=${OUTPUT:-runs/table} results=benchmarks/results
rows=()
declare -A more=() # rows of one data set alone

case $what in
final)
    options=(--shots 1 --seeds 3 --split test)
    methods=real,paste,sard,cutpaste,draem,inpaint,sard+real,paste+real
    segmenters=unet,segformer
    ;;
ablations)
    options=(--shots 1 --seeds 1 --split dev --fidelity false)
    methods=real,paste,sard
    # strength=0.05 is one step at the least noise: moved real defects, hardly touched by diffusion. By default there is
    # no guidance (1) and one candidate; half of the cells, and no tile, are written in place, and a quarter of the
    # tiles, and no cell, are drawn. A set of cells takes about four times as long as one of tiles: they have fewer rows.
    rows=(strength=0.05 strength=1 composite=pixels background=off,critic=false critic=false region=full count=50)
    more=([magnetic_tile]="background=frozen in_place=0.5 drawn=0 guidance_scale=2 guidance_scale=3 guidance_scale=5
        background=off background=frozen,critic=false critic_mask_branch=false background=frozen,critic_mask_branch=false
        background=off,critic_mask_branch=false candidates=3 min_visibility=0 min_snr=0 contrast=null decoys=200
        contrast=[0.4,1.2],min_snr=0 contrast=[1,1.4],min_snr=0 from_noise=0.3 count=800"
        [pv_cell_4bb]="in_place=0")
    for shots in 3 5 null; do # null: a third of all parts
        methods+=",real[shots=$shots],paste[shots=$shots],sard[shots=$shots]"
    done
    segmenters=unet
    ;;
shortcut)
    options=(--shots 1 --seeds 1 --split dev --fills 200 --fidelity false)
    methods=real,paste,cutpaste,draem,inpaint,sard
    segmenters=unet
    ;;
*)
    sed -n '2,11p' "$0"
    exit 2
    ;;
esac

"$python" benchmarks/parts.py "$data" "$output/data"
[ ! -f $results/figures.json ] || "$python" benchmarks/figures.py unpack "$output" $results/figures.json
trap '"$python" benchmarks/figures.py pack "$output" $results/figures.json' EXIT # also of one that was stopped
for name in magnetic_tile pv_cell_4bb; do
    own=$methods
    for change in "${rows[@]}" ${more[$name]:-}; do own+=",sard[$change]"; done
    "$python" -m sard_lora.cli benchmark --data "$output/data/$name" "${options[@]}" \
        --methods "$own" --segmenters "$segmenters" --output "$output" --workers "$workers"
    suffix=$([ "$what" = final ] || echo "_$what")
    for ending in json md; do # whose command takes the data set as parts.py left it
        sed "s|sard-lora benchmark --data|benchmarks/tables.sh $what DATA: &|" "$output/benchmark.$ending" \
            >"$results/$name$suffix.$ending"
    done
done
