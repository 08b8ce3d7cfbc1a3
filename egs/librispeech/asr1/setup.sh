#!/usr/bin/env bash
# Put this recipe into an ESPnet checkout, beside one of ESPnet's own.
set -euo pipefail

die() { echo "$0: $*" >&2; exit 1; }

if [ $# -lt 1 ] || [ $# -gt 2 ] || [ "$1" = --help ]; then
    echo "usage: $0 ESPNET_ROOT [RECIPE]"
    echo "Makes ESPNET_ROOT/egs2/RECIPE/asr1_l0prune; RECIPE is librispeech (the default),"
    echo "librispeech_100, mini_an4, or any other recipe of egs2 that has an asr1."
    exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
recipe=$1/egs2/${2:-librispeech}/asr1
dir=${recipe}_l0prune
for needed in "$recipe/local" "$1/egs2/TEMPLATE/asr1/asr.sh"; do
    [ -e "$needed" ] || die "there is no $needed; expected an ESPnet checkout with egs2"
done

mkdir -p "$dir/conf"
for name in asr.sh path.sh scripts pyscripts steps utils; do # ESPnet's, untouched
    ln -sfn "../../TEMPLATE/asr1/$name" "$dir/$name"
done
for name in cmd.sh db.sh local downloads.tar.gz; do # the recipe's, as you have set it up
    if [ -e "$recipe/$name" ] || [ -L "$recipe/$name" ]; then
        ln -sfn "../asr1/$name" "$dir/$name"
    fi
done
for path in "$recipe"/conf/{queue,slurm,pbs}.conf; do
    if [ -e "$path" ]; then
        ln -sfn "../../asr1/conf/$(basename "$path")" "$dir/conf/$(basename "$path")"
    fi
done
cp "$here/run.sh" "$here/README.md" "$dir/"
for path in "$here"/conf/*.yaml; do
    copy=$dir/conf/$(basename "$path")
    if [ -e "$copy" ] && ! cmp -s "$path" "$copy"; then
        cp "$path" "$copy.new"
        echo "$copy differs from ours: kept; ours is $copy.new"
    else
        cp "$path" "$copy"
    fi
done
echo "Next: cd $dir && ./run.sh"
