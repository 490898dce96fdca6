"""Makes the fixtures in tests/data/images with Pillow and transformers' image processors.

    python tools/make_image_fixtures.py        (needs pillow, transformers, torch, safetensors, numpy)

  tests/data/images/NAME.png, NAME.jpg          small images of each kind of pixels
  tests/data/images/PROCESSOR/                  a folder with a preprocessor_config.json
  tests/data/images/images.golden.safetensors   what the libraries make of them:
    rgb/NAME.EXT               [H,W,3] uint8     Pillow's RGB, transparency laid over white
    FILTER/NAME.EXT/WxH        [H,W,3] uint8     Pillow's resize of that
    PROCESSOR/NAME.EXT         [3,H,W] float32   the image processor's pixels of that
"""

import json
import pathlib

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import models

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "images"
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
SIZES = [(9, 7), (1, 1), (50, 3), (5, 60)]
HALF = [0.5, 0.5, 0.5]
PROCESSORS = {
    # As the first published configs have it: no type of its own for the size, most fields left out.
    "vit": (models.vit.image_processing_pil_vit.ViTImageProcessorPil,
            dict(do_normalize=True, do_resize=True, image_mean=HALF, image_std=HALF, size=11)),
    "deit": (models.deit.image_processing_pil_deit.DeiTImageProcessorPil,
             dict(feature_extractor_type="DeiTFeatureExtractor", size=15, crop_size=10, resample=3)),
    "clip": (models.clip.image_processing_pil_clip.CLIPImageProcessorPil,
             dict(image_processor_type="CLIPImageProcessor", size={"shortest_edge": 11}, do_convert_rgb=True,
                  crop_size={"height": 11, "width": 11})),
    # A crop beyond the image's borders, and bare values.
    "wide_crop": (models.vit.image_processing_pil_vit.ViTImageProcessorPil,
                  dict(image_processor_type="ViTImageProcessor", size={"height": 5, "width": 8}, do_center_crop=True,
                       crop_size={"height": 10, "width": 7}, do_rescale=False, do_normalize=False)),
}
PROCESSED = ["photo.jpg", "narrow.png", "dot.png", "translucent.png"]


def picture(width, height, channels, seed):
    """Smooth colours with some noise: what a photograph looks like to a codec."""
    noise = np.random.default_rng(seed).normal(size=(height, width, channels))
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (5 + 2 * c) + c) + np.cos(y / (7 - c)) for c in range(channels)]
    return np.clip(128 + 55 * np.stack(waves, -1) + 12 * noise, 0, 255).astype(np.uint8)


def make_images():
    def save(name, array, mode=None, **options):
        image = Image.fromarray(array if array.shape[-1] > 1 else array[..., 0])
        if mode:
            image = image.convert(mode)
        image.save(OUT / name, **options)

    save("photo.jpg", picture(45, 34, 3, 0), quality=88)
    save("progressive.jpg", picture(33, 20, 3, 1), quality=90, progressive=True, subsampling=0)
    save("grey.jpg", picture(17, 9, 1, 2))
    save("cmyk.jpg", picture(19, 21, 4, 3)[..., :3], "CMYK", quality=95)
    save("photo.png", picture(23, 31, 3, 4))
    save("narrow.png", picture(3, 200, 3, 5))
    save("dot.png", picture(1, 1, 3, 6))
    save("grey.png", picture(15, 8, 1, 7))
    save("black_and_white.png", picture(21, 5, 1, 8), "1")
    palette = Image.fromarray(picture(20, 20, 3, 9)).quantize(15)
    palette.save(OUT / "palette.png")
    palette.save(OUT / "palette_transparent.png", transparency=bytes(range(0, 240, 16)))
    translucent = picture(24, 19, 4, 10)
    translucent[:4, :, 3] = 0
    translucent[4:6, :, 3] = 255
    save("translucent.png", translucent)
    Image.fromarray(picture(11, 12, 2, 11), "LA").save(OUT / "grey_translucent.png")


def rgb_of(path):
    image = Image.open(path)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    make_images()
    tensors = {}
    images = {p.name: rgb_of(p) for p in sorted(OUT.glob("*.*")) if p.suffix in (".png", ".jpg")}
    for name, image in images.items():
        tensors[f"rgb/{name}"] = np.array(image)
    for name in ("photo.png", "dot.png"):
        for width, height in SIZES:
            for kind, resample in FILTERS.items():
                tensors[f"{kind}/{name}/{width}x{height}"] = np.array(images[name].resize((width, height), resample))
    for processor, (function, config) in PROCESSORS.items():
        folder = OUT / processor
        folder.mkdir(exist_ok=True)
        (folder / "preprocessor_config.json").write_text(json.dumps(config, indent=2) + "\n")
        process = function(**{k: v for k, v in config.items() if not k.endswith("_type")})
        for name in PROCESSED:
            pixels = process(images[name], return_tensors="np")["pixel_values"][0]
            tensors[f"{processor}/{name}"] = pixels.astype(np.float32)
    save_file({k: torch.from_numpy(v.copy()) for k, v in tensors.items()}, OUT / "images.golden.safetensors")
    total = sum(f.stat().st_size for f in OUT.rglob("*") if f.is_file())
    print(f"{len(images)} images, {len(tensors)} tensors, {total / 1000:.0f} kB")


if __name__ == "__main__":
    main()
