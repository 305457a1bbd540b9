"""Checkpoints of research code that is not diffusers': pytorch-ddpm, guided-diffusion and improved-diffusion.

Their networks are one layout with different names and settings, which `ResearchUNet` (network.py) runs. `convert` writes such a
checkpoint as a folder that `load` reads:

    FOLDER/unet/          config.json with _class_name ResearchUNet, the weights as safetensors
    FOLDER/scheduler/     the DDPMScheduler of the noise that it was trained with
    FOLDER/convert.json   where it came from, and what the checkpoint did not say and was assumed (records/conversion.py)

checkpoint.py opens the file and finds the network in it; layouts.py gives its weights their names here and reads from them what
they say of its settings; given.py adds what they do not say, from `--settings`.
"""

from diffleak.hub.research.convert import convert

__all__ = ["convert"]
