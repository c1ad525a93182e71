"""segmentation_models_pytorch's universal encoder: pip install segmentation-models-pytorch.

It asks timm for the strides of the maps, and knows pyramids that begin at stride 1, 2 or 4; EfficientViT's begins at
16, so timm's own network is refused as well.
"""

import segmentation_models_pytorch as smp
from torch_clients import tried


def segment(folder, images, logits):
    smp.Unet("tu-evit_nas", encoder_weights=None, arch=str(folder / "arch.yaml"))(images[:2])
    return {}


def segment_by_timm(folder, images, logits):
    smp.Unet("tu-efficientvit_m0", encoder_weights=None)(images[:2])
    return {}


if __name__ == "__main__":
    tried("segmentation_models_pytorch", smp.__version__, segment, how="`Unet('tu-evit_nas', arch=...)`")
    tried(
        "segmentation_models_pytorch, timm's m0", smp.__version__, segment_by_timm, how="`Unet('tu-efficientvit_m0')`"
    )
