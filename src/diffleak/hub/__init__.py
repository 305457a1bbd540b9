"""Reads models as users have them, a diffusers folder or hub id, as a `Target`; writes trained models as folders.

The only package that imports diffusers or knows its folder layout:

    MODEL/model_index.json             which pipeline it is, needed by text-to-image models only; names of classes
    MODEL/unet/ or transformer/        config.json and weights (`weights`): the denoiser; unet_ema/ its average
    MODEL/scheduler/                   scheduler_config.json: its noise schedule
    MODEL/vae/ or vqvae/               the autoencoder of a latent model, if it is one
    MODEL/text_encoder/, tokenizer/    what embeds the captions of a text-to-image model, and more with _2, _3
    MODEL/unet_2/ or transformer_2/    the second network of a `Dual`, with dual.json saying how the two take turns

`single_file` reads a model in one file; it takes the settings that a file does not hold from such a folder.
"""

from diffleak.diffusion.devices import checked_device
from diffleak.hub.classes import class_names
from diffleak.hub.codecs import codec_fingerprint, codec_of, latent_shape, load_codec, same_codec
from diffleak.hub.folders import AUTOENCODER_FOLDERS, DUAL, INDEX, PARTS, fingerprint, folder_of, heard, located, text_fingerprint
from diffleak.hub.loading import load, load_pair, save_dual, settings_of, target_of, training_records, unpack
from diffleak.hub.making import (
    add_lora,
    flow_schedule,
    moving_average,
    new_autoencoder,
    new_network,
    new_sampler,
    new_scheduler,
    new_text_to_image,
    save,
    save_autoencoder,
    save_fine_tuned,
    save_lora,
)
from diffleak.hub.pipelines import embed_first
from diffleak.hub.single_file import file_fingerprint

__all__ = [
    "AUTOENCODER_FOLDERS",
    "DUAL",
    "INDEX",
    "PARTS",
    "add_lora",
    "checked_device",
    "class_names",
    "codec_fingerprint",
    "codec_of",
    "embed_first",
    "file_fingerprint",
    "fingerprint",
    "flow_schedule",
    "folder_of",
    "heard",
    "latent_shape",
    "load",
    "load_codec",
    "load_pair",
    "located",
    "moving_average",
    "new_autoencoder",
    "new_network",
    "new_sampler",
    "new_scheduler",
    "new_text_to_image",
    "same_codec",
    "save",
    "save_autoencoder",
    "save_dual",
    "save_fine_tuned",
    "save_lora",
    "settings_of",
    "target_of",
    "text_fingerprint",
    "training_records",
    "unpack",
]
