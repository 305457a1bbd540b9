#!/usr/bin/env bash
# The study of defences: trains, audits, measures quality and compares. `studies/defences/run.sh` from the project root, after
# `python studies/prepare.py RAW work`. Every command resumes. About four hours on two CPU cores.
set -euo pipefail
S=studies/defences
C="--data work/cifar10.npy --split work/cifar10-defences-split.json"
F="--data work/fashion-mnist.npy --split work/fashion-mnist-defences-split.json"
python $S/extractor.py work/cifar10-others.npz 32 work/cifar10-extractor.pt
python $S/extractor.py work/fashion-mnist-others.npz 16 work/fashion-mnist-extractor.pt

# CIFAR-10: an autoencoder that has seen neither side, and denoisers of its latents
diffleak train -C $S/cifar10-autoencoder.yaml --data work/cifar10.npy --split work/cifar10-others-split.json -o work/c-ae
diffleak train -C $S/cifar10.yaml --autoencoder work/c-ae $C -o work/c-all
diffleak defend distill -C $S/cifar10.yaml --autoencoder work/c-ae $C --one-by-one -o work/c-md
diffleak defend dual -C $S/cifar10.yaml --autoencoder work/c-ae $C --teachers work/c-md/teacher-1,work/c-md/teacher-2 -o work/c-dual
diffleak defend one-teacher -C $S/cifar10.yaml --data work/cifar10.npy --teachers work/c-all -o work/c-one
diffleak train -C $S/cifar10.yaml --autoencoder work/c-ae $C --checkpoint-every 100 --validation 0.1 --patience 3 -o work/c-early
diffleak train -C $S/cifar10-dp.yaml --autoencoder work/c-ae $C -o work/c-dp

# Fashion-MNIST: pixels at 16 x 16
diffleak train -C $S/fashion-mnist.yaml $F --resize 16 -o work/f-all
diffleak defend distill -C $S/fashion-mnist.yaml $F --resize 16 --one-by-one -o work/f-md
diffleak defend dual -C $S/fashion-mnist.yaml $F --resize 16 --one-by-one -o work/f-md
diffleak defend one-teacher -C $S/fashion-mnist.yaml --data work/fashion-mnist.npy --resize 16 --teachers work/f-all -o work/f-one
diffleak train -C $S/fashion-mnist.yaml $F --resize 16 --checkpoint-every 100 --validation 0.1 --patience 3 -o work/f-early
diffleak train -C $S/fashion-mnist-dp.yaml $F --resize 16 -o work/f-dp

audit() {
  diffleak audit "work/$1" -C $S/audit.yaml --threads 1 -o "work/run-$2" "${@:3}"
  gzip -nc "work/run-$2/samples.csv" > "$S/samples-$2.csv.gz"  # kept, so that a corrected statistic needs no training
}
quality() { diffleak quality "work/$1" --images 500 --steps 50 --scores --threads 1 -o "work/run-$2" "${@:3}"; }
CX="--extractor torchscript:work/cifar10-extractor.pt"
FX="--extractor torchscript:work/fashion-mnist-extractor.pt --resize"
for pair in c-all=c-all c-md/teacher-1=c-teacher-1 c-md/teacher-2=c-teacher-2 c-dual/dual=c-dual c-one/student=c-one-teacher c-md/student=c-distill c-dp=c-dp; do
  audit "${pair%=*}" "${pair#*=}" $C
  quality "${pair%=*}" "${pair#*=}" $C $CX
done
audit c-early c-early --data work/cifar10.npy --split work/c-early/split.json
quality c-early c-early $C $CX
quality c-dual/dual c-dual-rounds-3 $C $CX --rounds 3
for pair in f-all=f-all f-md/teacher-1=f-teacher-1 f-md/teacher-2=f-teacher-2 f-md/dual=f-dual f-md/student=f-distill f-one/student=f-one-teacher f-dp=f-dp; do
  audit "${pair%=*}" "${pair#*=}" $F --resize
  quality "${pair%=*}" "${pair#*=}" $F $FX
done
audit f-early f-early --data work/fashion-mnist.npy --split work/f-early/split.json --resize
quality f-early f-early $F $FX
