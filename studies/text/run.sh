#!/usr/bin/env bash
# The study of text-to-image models: `studies/text/run.sh ZIP` from the project root, ZIP being noto-emoji-128.zip. The image encoder needs
# two packages of PyPI, which encoder.py names. Every command resumes. About two and a half hours on two CPU cores.
set -euo pipefail
S=studies/text
[ -d work/emoji ] || python $S/prepare.py "$1" work
[ -f work/encoder.pt ] || python $S/encoder.py work/encoder.pt
python $S/paraphrase.py work/emoji work/emoji-captions.json
diffleak train --preset vae --data work/emoji --split work/emoji-others-split.json --resize 32 --flip --steps 2500 --threads 1 --checkpoint-every 250 -o work/e-vae
diffleak train -C $S/base.yaml --data work/emoji --resize 32 --autoencoder work/e-vae --split work/emoji-others-split.json -o work/e-base

E="--data work/emoji --resize 32 --base work/e-base --split work/emoji-split.json"
D="--captions work/emoji-captions.json --diversify"
diffleak train -C $S/fine-tune.yaml $E -o work/e-all
diffleak train -C $S/fine-tune.yaml $E $D -o work/e-all-div
for method in distill dual; do
  diffleak defend $method -C $S/fine-tune.yaml $E --one-by-one -o work/e-md
  diffleak defend $method -C $S/fine-tune.yaml $E $D --one-by-one -o work/e-md-div
done

GREY=secmi,sima,pia,loss,clid
BLACK="black_box(encoder=torchscript:work/encoder.pt,steps=25)"
audit() { # model, name, captions, further flags
  diffleak audit "work/$1" -C $S/audit.yaml --threads 1 --data work/emoji --split work/emoji-split.json --resize --captions "$3" \
    -o "work/run-e-$2-$3" "${@:4}"
  gzip -nc "work/run-e-$2-$3/samples.csv" > "$S/samples-$2-$3.csv.gz"  # kept, so that a corrected statistic needs no training
}
quality() {
  diffleak quality "work/$1" --data work/emoji --split work/emoji-split.json --resize --images 300 --threads 1 \
    --extractor torchscript:work/encoder.pt --copy-encoder torchscript:work/encoder.pt -o "work/run-e-$2-own"
}
for model in e-all:all e-all-div:all-div e-md/dual:dual e-md-div/dual:dual-div e-md/student:distill e-md-div/student:distill-div; do
  audit "${model%:*}" "${model#*:}" own
  quality "${model%:*}" "${model#*:}"
done
for captions in empty swapped; do audit e-all all $captions --attacks "$GREY,$BLACK"; done
for model in e-all-div:all-div e-md/dual:dual e-md-div/dual:dual-div e-md/student:distill e-md-div/student:distill-div; do
  audit "${model%:*}" "${model#*:}" empty --attacks $GREY
  diffleak audit "work/${model%:*}" -C $S/audit.yaml --threads 1 --data work/emoji --split work/emoji-split.json --resize --captions empty \
    --attacks "$BLACK" -o "work/run-e-${model#*:}-empty-drawn"
done
python $S/figure.py work/run-e-all-own work/run-e-all-empty work/run-e-all-swapped $S/captions.png

python $S/lists.py work
for model in e-all:all e-md/student:distill; do
  diffleak prompts "work/${model%:*}" --memorised work/emoji-members.txt --ordinary work/emoji-held-out.txt --threads 1 -o "work/prompts-e-${model#*:}"
done
