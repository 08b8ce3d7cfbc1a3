#!/usr/bin/env bash
# Dense training, pruning, cutting, fine-tuning: ESPnet's asr.sh throughout, and one
# command of espnet_l0prune between. Options that are not below go to asr.sh, such as
# --ngpu 4, --num_nodes 2, --use_lm true.
set -euo pipefail

# --- options -------------------------------------------------------------------------
l0_stage=1       # 1 dense (asr.sh from data to scores), 2 prune, 3 cut, 4 fine-tune,
l0_stop_stage=4  # decode, score and pack; 5 upload, with --hf_repo
model=           # of conf/train_asr_MODEL.yaml; default: by the corpus
params=          # sparsity of the encoder in parameters; 0.5 where neither is given
macs=            # sparsity of the encoder in multiply-accumulates
adopt_args=      # more options of `espnet-l0prune adopt`, such as "--units paper"
prune_config=    # your own YAML, in place of the prune.yaml that adopt writes
dense_exp=       # an experiment that was trained dense, on the same tokens
l0_tag=          # more for the names of the pruned experiments
asr_args=        # more options for every training, such as "--num_workers 8"
# -------------------------------------------------------------------------------------

die() { echo "$0: $*" >&2; exit 2; }

if [ "${1:-}" = --help ]; then
    sed -n '2,4p; /^# --- options/,/^# -----*$/p' "$0"
    exit
fi
rest=() train=
while [ $# -gt 0 ]; do
    case $1 in
    --l0_stage | --l0_stop_stage | --model | --params | --macs | --adopt_args | \
        --prune_config | --dense_exp | --l0_tag | --asr_args)
        [ $# -gt 1 ] || die "$1 needs a value"
        printf -v "${1#--}" %s "$2"
        shift 2
        ;;
    --asr_exp | --asr_config | --pretrained_model)
        die "$1 is set here; expected --model, --prune_config or --dense_exp"
        ;;
    *)
        rest+=("$1")
        shift
        ;;
    esac
done
set -- "${rest[@]}"
for number in "$l0_stage" "$l0_stop_stage"; do
    [[ $number =~ ^[1-5]$ ]] || die "l0 stages are 1 to 5, not '$number'"
done
[ "$l0_stage" -le "$l0_stop_stage" ] ||
    die "--l0_stage $l0_stage comes after --l0_stop_stage $l0_stop_stage"
if [[ " $* " == *" --stage "* ]] && [ "$l0_stage" != "$l0_stop_stage" ]; then
    die "--stage is one of asr.sh, for one of ours; give --l0_stage and" \
        "--l0_stop_stage too, with the same number"
fi

case $(basename "$(dirname "$PWD")") in
librispeech) train=train_960 model=${model:-conformer} ;;
librispeech_100) train=train_clean_100 model=${model:-conformer_100} ;;
mini_an4)
    : "${model:=mini_an4}" "${adopt_args:=--epochs 24}"
    corpus=(--lang en --nj 2 --inference_nj 2 --token_type char --audio_format wav
        --train_set train_nodev --valid_set train_dev --test_sets test)
    ;;
*) corpus=() ;; # yours: give --train_set, --valid_set and --test_sets
esac
if [ -n "$train" ]; then # a part of LibriSpeech
    corpus=(--lang en --nbpe 5000 --max_wav_duration 30
        --speed_perturb_factors "0.9 1.0 1.1" --train_set "$train" --valid_set dev
        --test_sets "test_clean test_other dev_clean dev_other"
        --bpe_train_text "data/$train/text")
fi
: "${model:=conformer}"
[ -f "conf/train_asr_$model.yaml" ] || die "no conf/train_asr_$model.yaml; --model" \
    "chooses among$(printf ' %s' conf/train_asr_*.yaml)"
if [ -n "$prune_config" ]; then
    [ -f "$prune_config" ] || die "--prune_config: there is no $prune_config"
    [ -z "$params$macs" ] || die "--prune_config $prune_config has the sparsity itself;" \
        "expected no --params and no --macs beside it"
    l0_tag+=_$(basename "$prune_config" .yaml)
elif [ -z "$params$macs" ]; then
    params=0.5
fi
average=valid.acc.ave.pth
if grep -q '^decoder: transducer' "conf/train_asr_$model.yaml"; then
    average=valid.loss.ave.pth
fi

read -ra how <<<"$adopt_args"
for cost in params macs; do
    if [ -n "${!cost}" ]; then
        [[ ${!cost} =~ ^0?\.[0-9]*[1-9][0-9]*$ ]] ||
            die "--$cost is ${!cost}; expected a share in (0, 1), such as 0.5"
        how+=("--$cost" "${!cost}")
        l0_tag+=_$cost${!cost}
    fi
done
if [ -n "$dense_exp" ]; then l0_tag+=_of_$(basename "$dense_exp"); fi
exp=exp/asr_$model
dense=${dense_exp:-${exp}_dense}
adopted=${exp}_adopted$l0_tag
pruned=${exp}_pruned$l0_tag cut=${exp}_cut$l0_tag finetuned=${exp}_finetuned$l0_tag
teacher=(--model_conf "teacher_config=$dense/config.yaml"
    --model_conf "teacher_model_file=$dense/$average")
asr=(./asr.sh "${corpus[@]}" --use_lm false --inference_config conf/decode_asr.yaml
    --inference_asr_model "$average")
more=${asr_args:+ $asr_args}
# shellcheck disable=SC1091 # ESPnet's: the Python that has espnet_l0prune too
. ./path.sh

# `adopt OPTION ...` writes how to prune and to fine-tune, once
adopt() {
    if [ "$(cat "$adopted/options" 2>/dev/null)" = "$*" ]; then return; fi
    [ ! -e "$adopted" ] || die "$adopted was made with other options. Give a --l0_tag," \
        "so that all is made beside it, or remove $adopted"
    espnet-l0prune adopt "$@" | sed '/^Next:/,$d' # which the stages do
    echo "$*" >"$adopted/options"
}

wanted() { [ "$l0_stage" -le "$1" ] && [ "$l0_stop_stage" -ge "$1" ]; }

if wanted 1; then
    last=()
    if [ -n "$dense_exp" ]; then last=(--stop_stage 10); fi # data, tokens, statistics
    "${asr[@]}" --asr_config "conf/train_asr_$model.yaml" --asr_exp "$dense" \
        --asr_args "$asr_args" "${last[@]}" "$@"
fi
if wanted 2; then
    adopt "$dense" --checkpoint "$average" --out "$adopted" --no_data "${how[@]}"
    "${asr[@]}" --asr_config "${prune_config:-$adopted/prune.yaml}" \
        --asr_exp "$pruned" --stage 11 --stop_stage 11 \
        --pretrained_model "$dense/$average" --asr_args "${teacher[*]}$more" "$@"
fi
if wanted 3; then
    espnet-l0prune cut "$pruned" --out "$cut" --force
fi
structure=(--encoder_conf "structure=$cut/structure.yaml")
if [ -f "$cut/decoder_structure.yaml" ]; then
    structure+=(--decoder_conf "structure=$cut/decoder_structure.yaml")
fi
finetune=("${asr[@]}" --asr_config "$adopted/finetune.yaml" --asr_exp "$finetuned"
    --pretrained_model "$cut/model.pth" --asr_args "${teacher[*]} ${structure[*]}$more")
if wanted 4; then
    "${finetune[@]}" --stage 11 --skip_packing false "$@"
fi
if wanted 5; then
    "${finetune[@]}" --stage 15 --skip_upload_hf false "$@"
fi
