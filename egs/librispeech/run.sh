#!/usr/bin/env bash
# From a corpus to a pruned, packed recognizer. Needs only what pip installs:
# ESPnet, and espnet_l0prune. `./run.sh --help` lists the options.
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
here=$PWD

# --- options: `--name value` sets the variable of that name -------------------------
stage=1               # first stage to run
stop_stage=10         # last stage to run
corpus=mini           # mini, or the root of a corpus in LibriSpeech's layout
train_sets=           # splits to train on, e.g. "train-clean-100"
valid_sets=           # splits to validate on, e.g. "dev-clean"
test_sets=            # splits to test on, e.g. "test-clean test-other"
max_bad=0.05          # share of unreadable FLAC files to skip; more is an error
token_type=char       # char or bpe
nbpe=300              # size of the BPE model
datadir=              # default: data/NAME, where NAME is mini or the corpus folder's
expdir=               # default: exp/NAME
dense_exp=            # a trained experiment to prune, instead of stage 4
train_config=         # default: conf/train_mini.yaml for mini, else conf/train_small.yaml
prune_args=           # how to prune: options of `espnet-l0prune adopt`; default: below
milestones=           # sparsities on the way, e.g. "0.2 0.4": cut and fine-tuned, too
prune_config=         # your own YAML, in place of the prune.yaml that adopt writes
finetune_config=      # your own YAML, in place of its finetune.yaml
cut_args=             # more options of `espnet-l0prune cut`
decode_config=conf/decode.yaml
dense_model=valid.acc.ave.pth      # the teacher, in the dense experiment
finetuned_model=valid.acc.ave.pth  # the model to pack
seed=0                # of the mini corpus and of all trainings
ngpu=0                # GPUs to train on
train_args=           # more options for every training
train_program="python3 -m espnet2.bin.asr_train"  # another can register networks first
dry_run=false         # true: print what would run
# -------------------------------------------------------------------------------------

die() { echo "run.sh: $*" >&2; exit 1; }

usage() {
    echo "usage: run.sh [--name value ...]"
    sed -n '/^# --- options/,/^# -----*$/p' run.sh | sed '/^# --/d; s/^\([a-z_]*\)=/  --\1 /'
    echo "stages: 1 data, 2 tokens, 3 statistics, 4 dense training, 5 pruning,"
    echo "        6 cutting, 7 fine-tuning, 8 pack, 9 decode, 10 score"
}

options=$(sed -n '/^# --- options/,/^# -----*$/s/^\([a-z_]*\)=.*/\1/p' run.sh)
while [ $# -gt 0 ]; do
    name=${1#--}
    if [ "$1" = --help ]; then usage; exit 0; fi
    if [ "$name" = "$1" ] || ! grep -qx -- "$name" <<<"$options"; then
        die "unknown option $1; ./run.sh --help lists the options"
    fi
    [ $# -gt 1 ] || die "$1 needs a value"
    value=$2
    case $name in # paths are relative to where run.sh was called
    corpus | datadir | expdir | dense_exp | *_config)
        if [ "$name=$2" != corpus=mini ] && [ "$caller" != "$here" ]; then
            value=$(cd "$caller" && realpath -m "$2")
        fi
        if [[ $value == *[[:space:]]* ]]; then die "$1 '$value': no spaces in paths"; fi
        ;;
    esac
    printf -v "$name" %s "$value"
    shift 2
done
for number in "$stage" "$stop_stage"; do
    [[ $number =~ ^([1-9]|10)$ ]] || die "stages are 1 to 10, not '$number'"
done
[[ $dry_run =~ ^(true|false)$ ]] || die "--dry_run is true or false, not '$dry_run'"
[[ $ngpu =~ ^[0-9]+$ ]] || die "--ngpu is a number, not '$ngpu'"

if [ -z "${VIRTUAL_ENV:-}" ] && [ -x ../../.venv/bin/python3 ]; then
    PATH=$(cd ../../.venv/bin && pwd):$PATH
fi
export PYTHONWARNINGS=ignore PYTHONUNBUFFERED=1 NLTK_DATA=/nonexistent

if [ "$corpus" = mini ]; then
    size=mini name=mini
    : "${train_sets:=train-mini}" "${valid_sets:=dev-mini}" "${test_sets:=test-mini}"
else
    size=small name=$(basename "$corpus")
    [ -n "$train_sets" ] && [ -n "$valid_sets" ] && [ -n "$test_sets" ] ||
        die "--corpus $corpus needs --train_sets, --valid_sets and --test_sets"
fi
: "${datadir:=data/$name}" "${expdir:=exp/$name}"
: "${train_config:=conf/train_$size.yaml}"
for config in "$train_config" ${prune_config:+"$prune_config"} \
    ${finetune_config:+"$finetune_config"} "$decode_config"; do
    [ -f "$config" ] || die "no such configuration: $config"
done

if [ -n "$prune_args" ]; then
    read -ra how <<<"$prune_args"
elif [ "$size" = mini ]; then # all else is adopt's own choice, here and below
    how=(--params 0.5 --macs 0.6 --epochs 8 --finetune_epochs 3)
else # channels stay a multiple of 8, which makes convolutions faster
    how=(--params 0.5 --macs 0.7 --epochs 12 --finetune_epochs 5)
    how+=(--set encoder_conf.round_to=8)
fi

read -ra shares <<<"$milestones"
for share in "${shares[@]}"; do
    [[ $share =~ ^0\.[0-9]*[1-9]$ ]] || die "--milestones are sparsities, not '$share'"
done
if [ ${#shares[@]} -gt 0 ]; then how+=(--milestones "${shares[@]}"); fi

# `step STAGE DONE "INPUTS" "OUTPUTS" COMMAND ...` runs a stage of the range asked for,
# unless the file DONE says that the same command, with the same configurations and the
# same contents of INPUTS, has finished, and all OUTPUTS are there.
key=
step() {
    local number=$1 done=$2 inputs=$3 outputs output complete=true files=() word
    outputs=$(tr '\n' ' ' <<<"$4")
    shift 4
    if [ "$number" -lt "$stage" ] || [ "$number" -gt "$stop_stage" ]; then return; fi
    for word in "$@" $inputs; do
        if [ -f "$word" ] && [[ " $outputs " != *" $word "* ]]; then files+=("$word"); fi
    done
    key=$({ echo "$@"; cat /dev/null "${files[@]}"; } | sha256sum | cut -c1-16)
    for output in $outputs; do [ -e "$output" ] || complete=false; done
    if $complete && [ "$(cat "$done" 2>/dev/null)" = "$key" ]; then
        echo "stage $number: already done ($done)"
        return
    fi
    if $dry_run; then echo "stage $number: $(date +%T) $1"; echo "  $*"; return; fi
    foretell
    echo "stage $number: $(date +%T) $1$(left "$number")"
    mkdir -p "$(dirname "$done")"
    rm -f "$done"
    local begin=$SECONDS
    "$@"
    spent=$((spent + SECONDS - begin)) ran[number]=1
    for output in $outputs; do
        [ -e "$output" ] || die "stage $number ended without writing $output"
    done
    echo "$key" >"$done"
}

# `foretell` says once, before the first stage of the demo that has anything to do, what is
# to come, and measures how long it takes; `left STAGE` says how long the rest takes, as the
# stages before have gone.
expected=() spent=0 ran=()
foretell() {
    if [ "$corpus" != mini ] || [ ${#expected[@]} -gt 0 ]; then return; fi
    echo "The demo: half an hour of synthetic speech, a recognizer that is trained on it,"
    echo "pruned, cut, fine-tuned and packed; then both decode, and a table shows dense"
    echo "beside pruned: parameters, multiply-accumulates (MACs), time and error rates."
    echo "Measuring how fast this machine is, by some updates of the training ..."
    local seconds
    seconds=$(python3 local/forecast.py "$train_config" 2>/dev/null) ||
        die "no training step can be timed: \`espnet-l0prune doctor\` says what is wrong"
    read -ra expected <<<"$seconds"
}

left() {
    if [ ${#expected[@]} -eq 0 ]; then return; fi
    local rest=0 planned=0 i
    for ((i = $1; i <= stop_stage; i++)); do rest=$((rest + expected[i - 1])); done
    for ((i = 1; i < $1; i++)); do
        planned=$((planned + ${ran[i]:-0} * expected[i - 1]))
    done
    if [ "$planned" -ge 60 ]; then rest=$((rest * spent / planned)); fi
    echo ", about $((rest / 60 + 1)) min left"
}

# --- the stages' commands ------------------------------------------------------------

data() { # CORPUS SEED MAX_BAD TRAIN VALID TEST
    local root=$1
    if [ "$1" = mini ]; then
        root=$here/downloads/mini-$2
        [ -d "$root" ] || python3 local/mini_corpus.py "$root" --seed "$2"
    fi
    # shellcheck disable=SC2086 # the sets are lists
    python3 local/data.py --corpus "$root" --datadir "$datadir" --max_bad "$3" \
        --train_sets $4 --valid_sets $5 --test_sets $6
}

# `train OUT CONFIG ...` shows the start of each epoch with ESPnet's estimate of the
# time left; the whole log is OUT/train.log.
train() {
    local out=$1 config=$2
    shift 2
    # a checkpoint of other settings is neither resumed nor lost
    if [ -e "$out/checkpoint.pth" ] && [ "$(cat "$out/.key" 2>/dev/null)" != "$key" ]; then
        die "$out was trained with other settings, or from other inputs. Choose" \
            "another --expdir, or remove $out; to train it on all the same:" \
            "echo $key >$out/.key"
    fi
    mkdir -p "$out"
    echo "$key" >"$out/.key"
    if ! "${program[@]}" --config "$config" --output_dir "$out" \
        --use_preprocessor true --ngpu "$ngpu" \
        --train_data_path_and_name_and_type "$datadir/train/wav.scp,speech,sound" \
        --train_data_path_and_name_and_type "$datadir/train/text,text,text" \
        --valid_data_path_and_name_and_type "$datadir/valid/wav.scp,speech,sound" \
        --valid_data_path_and_name_and_type "$datadir/valid/text,text,text" \
        "${distributed[@]}" "$@" 2>&1 | tee -a "$out/train.log" | show_progress; then
        { grep -v '^\s*$' "$out/train.log" || true; } | tail -n 5 >&2
        die "training failed; the whole log is $(cd "$out" && pwd)/train.log"
    fi
}

# `adopt DENSE OPTION ...` writes how to prune and to fine-tune, once
adopt() {
    if [ ! -e "$adopted" ]; then
        espnet-l0prune adopt "$@" | sed '/^Next:/,$d' # which the stages do
        echo "$key" >"$adopted/.key"
    elif [ "$(cat "$adopted/.key" 2>/dev/null)" != "$key" ]; then
        die "$adopted was made with other options, or from another dense model." \
            "Choose another --expdir, or remove $adopted"
    fi
}

show_progress() {
    sed -un -e 's/.*INFO: \([0-9]*\/[0-9]*\)epoch started\(.*\)/  epoch \1\2/p' \
        -e 's/.*INFO: Pruning enters/  pruning enters/p'
}

statistics() {
    local config=$1
    shift
    train "$stats" "$config" "${tokens[@]}" --collect_stats true --batch_type unsorted \
        --batch_size 16 --train_shape_file "$datadir/train/wav.scp" \
        --valid_shape_file "$datadir/valid/wav.scp" "$@"
}

fit() {
    local out=$1 config=$2 given
    shift 2
    if head -n 1 "$config" | grep -q '^# By espnet-l0prune adopt'; then
        # what adopt wrote has the dense model's tokens and normalization; it leaves out the
        # lengths for batch_type: folded, and asr.sh has the same
        given=(--fold_length 80000 --fold_length 150)
    else
        given=("${tokens[@]}")
        if ! grep -q '^normalize:' "$config"; then # otherwise as in ESPnet's asr.sh
            given+=(--normalize global_mvn
                --normalize_conf "stats_file=$stats/train/feats_stats.npz")
        fi
    fi
    train "$out" "$config" --resume true "${given[@]}" \
        --train_shape_file "$stats/train/speech_shape" \
        --train_shape_file "$stats/train/text_shape" \
        --valid_shape_file "$stats/valid/speech_shape" \
        --valid_shape_file "$stats/valid/text_shape" "$@"
}

tokendir=$datadir/tokens_$token_type
bpe=()
if [ "$token_type" = bpe ]; then
    tokendir+="$nbpe"
    bpe=(--bpemodel "$tokendir/bpe.model")
fi
tokens=(--token_type "$token_type" --token_list "$tokendir/tokens.txt" "${bpe[@]}")
distributed=()
if [ "$ngpu" -gt 1 ]; then distributed=(--multiprocessing_distributed true); fi
read -ra more <<<"$train_args"
read -ra cutting <<<"$cut_args"
read -ra program <<<"$train_program"
stats=$expdir/asr_stats dense=${dense_exp:-$expdir/asr_dense}
adopted=$expdir/asr_adopted pruned=$expdir/asr_pruned
cut=$expdir/asr_cut finetuned=$expdir/asr_finetuned
zip=$expdir/asr_pruned.zip
teacher=(--model_conf "teacher_config=$dense/config.yaml"
    --model_conf "teacher_model_file=$dense/$dense_model")
texts="$datadir/train/text $datadir/train/wav.scp $datadir/valid/text $datadir/valid/wav.scp"
tests=$(for set in $test_sets; do echo "$datadir/test/$set"/{text,wav.scp}; done)
features="$texts $tokendir/tokens.txt $stats/train/feats_stats.npz"

step 1 "$datadir/.done" "" "$texts $tests" \
    data "$corpus" "$seed" "$max_bad" "$train_sets" "$valid_sets" "$test_sets"
step 2 "$tokendir/.done" "$datadir/train/text" "$tokendir/tokens.txt ${bpe[1]:-}" \
    python3 local/tokens.py --text "$datadir/train/text" --out "$tokendir" \
    --token_type "$token_type" --nbpe "$nbpe"
step 3 "$stats/.done" "$texts $tokendir/tokens.txt" \
    "$stats/train/feats_stats.npz $stats/train/speech_shape $stats/valid/speech_shape" \
    statistics "$train_config" "${more[@]}"
if [ -z "$dense_exp" ]; then
    step 4 "$dense/.done" "$features" "$dense/$dense_model" \
        fit "$dense" "$train_config" --seed "$seed" "${more[@]}"
fi
if [ -z "$prune_config" ] || [ -z "$finetune_config" ]; then
    step 5 "$expdir/.adopt.done" "$dense/config.yaml $dense/$dense_model" \
        "$adopted/prune.yaml $adopted/finetune.yaml" \
        adopt "$dense" --checkpoint "$dense_model" --out "$adopted" --no_data "${how[@]}"
fi
: "${prune_config:=$adopted/prune.yaml}" "${finetune_config:=$adopted/finetune.yaml}"
step 5 "$pruned/.done" "$features $dense/$dense_model" "$pruned/latest.pth" \
    fit "$pruned" "$prune_config" --seed "$seed" \
    --init_param "$dense/$dense_model" "${teacher[@]}" "${more[@]}"
for share in "" "${shares[@]}"; do # the end, and each milestone
    end=${share:+_$share} gated=$pruned${share:+/milestone_$share}
    step 6 "$expdir/.cut$end.done" \
        "$gated/$([ -z "$share" ] && echo latest || echo model).pth $gated/config.yaml" \
        "$cut$end/model.pth $cut$end/config.yaml $cut$end/structure.yaml" \
        espnet-l0prune cut "$gated" --out "$cut$end" --force "${cutting[@]}"
    structures=(--encoder_conf "structure=$cut$end/structure.yaml")
    if [ -f "$cut$end/decoder_structure.yaml" ]; then
        structures+=(--decoder_conf "structure=$cut$end/decoder_structure.yaml")
    fi
    step 7 "$finetuned$end/.done" "$features $dense/$dense_model $cut$end/model.pth" \
        "$finetuned$end/$finetuned_model" \
        fit "$finetuned$end" "$finetune_config" --seed "$seed" \
        --init_param "$cut$end/model.pth" "${structures[@]}" "${teacher[@]}" "${more[@]}"
done
small="$finetuned/$finetuned_model $finetuned/config.yaml"
pack=(espnet-l0prune export plugin "$finetuned" --checkpoint "$finetuned_model"
    --out "$zip" --force)
step 8 "$expdir/.pack.done" "$small" "$zip" "${pack[@]}"
# (--zip=FILE is no input: stage 10 packs the same model anew)
# shellcheck disable=SC2086 # the sets are lists
step 9 "$expdir/.decode.done" "$small $dense/$dense_model $tests" \
    "$expdir/decode/measures.json" \
    python3 local/decode.py --dense "$dense" --dense_model "$dense_model" --zip="$zip" \
    --config "$decode_config" --datadir "$datadir/test" --out "$expdir/decode" \
    --sets $test_sets
if [ "$stop_stage" -ge 10 ]; then
    $dry_run || foretell
    echo "stage 10: $(date +%T) score$(left 10)"
    # shellcheck disable=SC2086 # the sets are lists
    $dry_run || python3 local/score.py --decode "$expdir/decode" \
        --datadir "$datadir/test" --out "$expdir/RESULTS.md" --sets $test_sets
    $dry_run || cp "$expdir/RESULTS.md" "$finetuned/"
    $dry_run || "${pack[@]}" # again: the model card has the results now
    for made in "$dense" "$pruned" "$cut" "$finetuned" "$zip" "$expdir/decode"; do
        echo "  $(realpath -m "$made")"
    done
fi
