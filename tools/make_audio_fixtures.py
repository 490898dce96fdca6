"""Makes the fixtures in tests/data/audio with NumPy and transformers' feature extractors.

    python tools/make_audio_fixtures.py        (needs transformers, torch, safetensors, numpy)

  tests/data/audio/EXTRACTOR/                  a folder with a preprocessor_config.json
  tests/data/audio/audio.golden.safetensors    what transformers makes of sounds:
    sound/NAME                 [N] float32      samples at the rate of the extractors
    EXTRACTOR/NAME             [C,T] float32    what the extractor makes of them
"""

import json
import pathlib

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "audio"
EXTRACTORS = {
    "wav2vec2": (Wav2Vec2FeatureExtractor,
                 dict(feature_extractor_type="Wav2Vec2FeatureExtractor", feature_size=1, sampling_rate=16000,
                      do_normalize=True, padding_value=0.0, return_attention_mask=False)),
    "plain": (Wav2Vec2FeatureExtractor,
              dict(feature_extractor_type="Wav2Vec2FeatureExtractor", sampling_rate=16000, do_normalize=False)),
    # Whisper's sizes, but for the length.
    "whisper": (WhisperFeatureExtractor,
                dict(feature_extractor_type="WhisperFeatureExtractor", feature_size=80, sampling_rate=16000,
                     hop_length=160, chunk_length=1, n_fft=400, padding_value=0.0)),
    # Odd ones: a window of a prime length, a hop that does not divide the second.
    "whisper_odd": (WhisperFeatureExtractor,
                    dict(feature_extractor_type="WhisperFeatureExtractor", feature_size=13, sampling_rate=16000,
                         hop_length=331, chunk_length=1, n_fft=401)),
}


def sounds():
    time = np.arange(16000) / 16000
    random = np.random.default_rng(7)
    voice = sum(np.sin(2 * np.pi * 140 * k * time + k) / k for k in range(1, 20)) * (0.2 + 0.1 * np.sin(9 * time))
    return {
        "voice": voice[:9000],
        "noise": 0.3 * random.normal(size=5000) + 0.1,
        "longer": np.concatenate([voice, voice[:3000]]),  # than the second that these extractors look at
        "silence": np.zeros(700),
    }


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, samples in sounds().items():
        tensors[f"sound/{name}"] = samples.astype(np.float32)
    for extractor, (function, config) in EXTRACTORS.items():
        folder = OUT / extractor
        folder.mkdir(exist_ok=True)
        (folder / "preprocessor_config.json").write_text(json.dumps(config, indent=2) + "\n")
        extract = function(**{k: v for k, v in config.items() if not k.endswith("_type")})
        for name in sounds():
            result = extract(tensors[f"sound/{name}"], sampling_rate=16000, return_tensors="np")
            values = result["input_features"] if "input_features" in result else result["input_values"]
            tensors[f"{extractor}/{name}"] = values[0].reshape(-1, values.shape[-1]).astype(np.float32)
    save_file({k: torch.from_numpy(v.copy()) for k, v in tensors.items()}, OUT / "audio.golden.safetensors")
    total = sum(f.stat().st_size for f in OUT.rglob("*") if f.is_file())
    print(f"{len(tensors)} tensors, {total / 1000:.0f} kB")


if __name__ == "__main__":
    main()
