#!/bin/sh
# A gate at a line's end: judges the picture of one part, and says pass, reject or stop.
#
#     sh examples/line_gate.sh MODEL PICTURE [OUT]
#
# MODEL is a calibrated model (mmad-bank fit patchcore GOOD --bundled --out MODEL), and OUT the folder for the picture's
# overlay and score.json (default: judged/NAME). The exit code is 0 for a good part, 1 for a bad one, and 2 where there
# is no verdict: a part that nobody has judged must not pass. The command's own codes are in the documentation, "What
# all commands share".
#
# It loads the model for every picture, which takes seconds. Where that is too slow, give `predict` many pictures at
# once, or keep the model in memory in a program: examples/fit_a_method.py.
set -u
if [ $# -lt 2 ]; then
    echo "usage: sh line_gate.sh MODEL PICTURE [OUT]" >&2
    exit 2
fi
model=$1
picture=$2
name=$(basename "$picture")
out=${3:-judged/${name%.*}}

mmad-bank predict "$model" "$picture" --out "$out" --overwrite --fail-on-bad
case $? in
    0)
        echo "pass: $picture"
        exit 0
        ;;
    4) # bad, at the model's false-alarm rate; --false-alarm-rate 1% asks for another
        echo "reject: $picture, see $out/overlay.png"
        exit 1
        ;;
    *) # 2: the picture or the model cannot be used, or the model is not calibrated; 130, 143: stopped; 1: anything else
        echo "stop: $picture was not judged" >&2
        exit 2
        ;;
esac
