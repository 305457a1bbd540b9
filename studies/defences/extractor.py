"""Trains the feature extractor of a study: `python studies/defences/extractor.py OTHERS.npz SIDE OUT.pt`.

No Inception weights can be had offline, so quality is measured in the 64 features of a small classifier of the data
set's own classes, trained on images that no audited model has seen and no audit uses. OUT.pt is TorchScript: float
images (b, c, SIDE, SIDE) in [-1, 1] to (features, class probabilities).
"""

import sys

import numpy as np
import torch

from diffleak.data.pixels import ImageShape, fit, to_model

EPOCHS = 12
BATCH = 64
FEATURES = 64


class Classifier(torch.nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = []
        for width, before in ((32, channels), (64, 32), (FEATURES, 64)):
            layers += [torch.nn.Conv2d(before, width, 3, padding=1), torch.nn.GroupNorm(8, width), torch.nn.SiLU(), torch.nn.AvgPool2d(2)]
        self.body, self.head = torch.nn.Sequential(*layers), torch.nn.Linear(FEATURES, classes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.body(x).mean(dim=(2, 3))
        return features, torch.softmax(self.head(features), dim=1)


def main(data: str, side: int, out: str) -> None:
    torch.manual_seed(0)
    with np.load(data) as arrays:
        images, labels = arrays["images"], torch.from_numpy(arrays["labels"])
    images = images if images.ndim == 4 else images[..., None]
    shape = ImageShape(images.shape[3], side, side)
    x = torch.from_numpy(to_model(np.stack([fit(image, shape, True, "image") for image in images])))
    held_out = len(x) // 10
    model = Classifier(shape.channels, int(labels.max()) + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for epoch in range(EPOCHS):
        order = held_out + torch.randperm(len(x) - held_out)
        for rows in order.split(BATCH):
            probabilities = model(x[rows])[1]
            loss = torch.nn.functional.nll_loss(torch.log(probabilities + 1e-8), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            right = (model(x[:held_out])[1].argmax(dim=1) == labels[:held_out]).float().mean()
        print(f"epoch {epoch + 1}: {100 * float(right):.1f} % of {held_out} unseen images right", flush=True)
    torch.jit.script(model.eval()).save(out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
