#!/usr/bin/env bash
# The study of text-to-image models: `studies/text/run.sh ZIP` from the project root, ZIP being noto-emoji-128.zip; work/cifar10-extractor.pt
# is that of the study of defences. Every command resumes. About two hours on two CPU cores.
set -euo pipefail
S=studies/text
[ -d work/emoji ] || python $S/prepare.py "$1" work
python $S/paraphrase.py work/emoji work/emoji-captions.json
leakscope train --preset vae --data work/emoji --split work/emoji-others-split.json --resize 32 --flip --steps 2500 --threads 1 --checkpoint-every 250 -o work/e-vae
leakscope train -C $S/base.yaml --data work/emoji --resize 32 --autoencoder work/e-vae --split work/emoji-others-split.json -o work/e-base

E="--data work/emoji --resize 32 --base work/e-base --split work/emoji-split.json"
D="--captions work/emoji-captions.json --diversify"
leakscope train -C $S/fine-tune.yaml $E -o work/e-all
leakscope train -C $S/fine-tune.yaml $E $D -o work/e-all-div
for method in distill dual; do
  leakscope defend $method -C $S/fine-tune.yaml $E --one-by-one -o work/e-md
  leakscope defend $method -C $S/fine-tune.yaml $E $D --one-by-one -o work/e-md-div
done

audit() {
  leakscope audit "work/$1" -C $S/audit.yaml --threads 1 --data work/emoji --split work/emoji-split.json --resize --captions "$3" -o "work/run-$2-$3"
}
for captions in own empty swapped; do audit e-all e-all $captions; done
audit e-md/student e-distill own
audit e-md/dual e-dual own
audit e-all-div e-all-div own
audit e-md-div/student e-distill-div own
python $S/figure.py work/run-e-all-own work/run-e-all-empty work/run-e-all-swapped $S/captions.png
