"""Checkpoints of research code that is not diffusers': pytorch-ddpm, guided-diffusion and improved-diffusion.

Their networks are one layout with different names and settings, which `ResearchUNet` (network.py) runs. `convert` writes such a
checkpoint as a folder that `load` reads:

    FOLDER/unet/          config.json with _class_name ResearchUNet, the weights as safetensors
    FOLDER/scheduler/     the DDPMScheduler of the noise that it was trained with
    FOLDER/convert.json   where it came from, and the settings that the checkpoint did not give and were assumed (records/conversion.py)

checkpoint.py opens the file and finds the network in it; layouts.py renames its weights and reads the settings that they determine;
given.py adds the other settings, from `--settings`.
"""

from diffleak.hub.research.convert import convert

__all__ = ["convert"]
