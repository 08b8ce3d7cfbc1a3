#!/usr/bin/env bash
# landing_data.sh SHARED OUT: what landing.py reads, from the folder SHARED with our test
# data, which are not in this repository. OUT gets the data folders fsdd, synthetic,
# mini_an4 and speechocean, and so_dense: speechocean's dense model, trained on until the
# loss of its development set stands (some 50 minutes on one thread). What OUT has is kept.
set -euo pipefail
[ $# = 2 ] || { sed -n '2,6s/^# //p' "$0" >&2; exit 1; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
shared=$(realpath "$1")
mkdir -p "$2"
cd "$2"
recipe=$here/../egs/librispeech/local
export PATH=$here/../.venv/bin:$PATH

# read_corpus NAME SPLIT: the train set of a corpus as a data folder
read_corpus() {
    python3 "$recipe/data.py" --corpus "$1_corpus" --datadir "$1_data" \
        --train_sets "train-$2" --valid_sets "dev-$2" --test_sets "test-$2"
    ln -s "$1_data/train" "$1"
}

if [ ! -e fsdd ]; then
    python3 "$shared/data/fsdd/make_corpus.py" fsdd_corpus --train 100
    read_corpus fsdd digits
fi
if [ ! -e synthetic ]; then
    python3 "$recipe/mini_corpus.py" synthetic_corpus --scale 0.75
    read_corpus synthetic mini
fi
if [ ! -e mini_an4 ]; then
    tar xzf "$shared/data/mini_an4/downloads.tar.gz"
    rm -rf mini_an4.part
    mkdir mini_an4.part
    sed -E 's/<\/?s>//g; s/^ *(.*[^ ]) *\((.*)\)$/\2 \1/' \
        downloads/an4/etc/*.transcription >mini_an4.part/text
    while read -r name _; do
        echo "$name $(find "$PWD/downloads/an4/wav" -name "$name.sph")"
    done <mini_an4.part/text >mini_an4.part/wav.scp
    mv mini_an4.part mini_an4
fi
dense=$shared/data/speechocean/dense
if [ ! -e speechocean ]; then
    python3 "$shared/data/speechocean/make_corpus.py" so_corpus
    python3 "$dense/prepare.py" so_corpus/LibriSpeech data
    ln -s data/train speechocean
fi
options=()
for part in train dev; do
    kind=${part/dev/valid}
    options+=(
        "--${kind}_data_path_and_name_and_type" "data/$part/wav.scp,speech,sound"
        "--${kind}_data_path_and_name_and_type" "data/$part/text,text,text"
        "--${kind}_shape_file" "data/$part/speech_shape"
        "--${kind}_shape_file" "data/$part/text_shape"
    )
done
python3 -m espnet2.bin.asr_train --config "$dense/train.yaml" --resume true \
    --token_list data/tokens.txt --init_param "$dense/valid.acc.ave.pth" \
    --optim_conf lr=0.001 --optim_conf weight_decay=0.000001 \
    --scheduler_conf warmup_steps=100 --max_epoch 8 --output_dir so_dense "${options[@]}"
