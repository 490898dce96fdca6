"""What tools/make_golden.py makes: the small models and GPTQ layouts, as data.

Every model is a dictionary of config.json fields as published models write them. `rope_parameters` is the newer
spelling of `rope_theta` + `rope_scaling`; both occur here, because both occur in published folders.
"""

SMALL = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, vocab_size=96, max_position_embeddings=128,
             rms_norm_eps=1e-5, hidden_act="silu", bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)


def llama():
    return dict(SMALL, model_type="llama", architectures=["LlamaForCausalLM"], rope_theta=10000.0,
                num_attention_heads=4, num_key_value_heads=2)


def merged(base, **fields):
    return dict(base, **fields)


def without(base, *keys):
    return {k: v for k, v in base.items() if k not in keys}


# name -> (config.json fields, dtype of the stored weights, number of shards)
DENSE = {
    # Llama-2: one key/value head a query head; rope_scaling is absent.
    "llama_mha": (without(llama(), "num_key_value_heads"), "float32", 2),
    # Llama-3.1: frequencies fall in all three bands (kept, blended, divided) for these numbers.
    "llama3_rope": (merged(llama(), num_attention_heads=8, head_dim=16, rope_theta=500.0, rope_scaling=dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=64)), "bfloat16", 1),
    "llama_linear_rope": (merged(llama(), rope_scaling=dict(type="linear", factor=2.5)), "bfloat16", 1),
    # The base grows once a row is longer than max_position_embeddings.
    "llama_dynamic_rope": (merged(llama(), max_position_embeddings=32,
                                  rope_scaling=dict(rope_type="dynamic", factor=3.0)), "bfloat16", 1),
    "llama_yarn_rope": (merged(without(llama(), "rope_theta"), head_dim=32, rope_parameters=dict(
        rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=32)), "bfloat16", 1),
    "llama_rope_parameters": (merged(without(llama(), "rope_theta"), rope_parameters=dict(
        rope_type="default", rope_theta=50000.0)), "float16", 1),
    "llama_biases": (merged(llama(), attention_bias=True, mlp_bias=True), "float32", 1),
    # heads * head_dim = 96, hidden_size = 48.
    "llama_head_dim": (merged(llama(), head_dim=24), "bfloat16", 1),
    # SmolLM2-135M in small: nine query heads over three, tied, a hidden size that no power of two divides.
    "smollm2_small": (merged(llama(), hidden_size=72, num_attention_heads=9, num_key_value_heads=3, rope_theta=100000.0,
                             tie_word_embeddings=True, num_hidden_layers=3), "bfloat16", 1),
    "mistral_window": (merged(llama(), model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=13),
                       "bfloat16", 1),
    "mistral_nemo": (merged(llama(), model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=None,
                            head_dim=24, rope_theta=1000000.0), "bfloat16", 1),
    "qwen2": (merged(llama(), model_type="qwen2", architectures=["Qwen2ForCausalLM"], rms_norm_eps=1e-6,
                     rope_theta=1000000.0, use_sliding_window=False, sliding_window=16, max_window_layers=1),
              "bfloat16", 1),
    "qwen2_tied": (merged(llama(), model_type="qwen2", architectures=["Qwen2ForCausalLM"], rms_norm_eps=1e-6,
                          rope_theta=1000000.0, tie_word_embeddings=True), "bfloat16", 1),
    # Layers from max_window_layers on see a window, those before it see everything.
    "qwen2_window": (merged(llama(), model_type="qwen2", architectures=["Qwen2ForCausalLM"], rms_norm_eps=1e-6,
                            num_hidden_layers=3, use_sliding_window=True, sliding_window=11, max_window_layers=1),
                     "bfloat16", 1),
    "qwen3": (merged(llama(), model_type="qwen3", architectures=["Qwen3ForCausalLM"], rms_norm_eps=1e-6, head_dim=24,
                     rope_theta=1000000.0, tie_word_embeddings=True, attention_bias=False), "bfloat16", 1),
}

# GPTQ packs 32 codes at a time, so its sizes are multiples of 32.
GPTQ_SIZES = dict(hidden_size=64, intermediate_size=96, torch_dtype="float16")
GPTQ_LLAMA = merged(llama(), **GPTQ_SIZES)
GPTQ_QWEN2 = merged(DENSE["qwen2_tied"][0], **GPTQ_SIZES)

# `config` says which file holds the quantisation configuration; `weights` is the weight file's name.
GPTQ = {
    "gptq_b4_g32": dict(model=GPTQ_LLAMA, bits=4, group_size=32, sym=True),
    "gptq_b4_g32_actorder": dict(model=GPTQ_LLAMA, bits=4, group_size=32, sym=True, desc_act=True,
                                 config="quantize_config.json", weights="gptq_model-4bit-32g.safetensors"),
    # Groups of 64 in rows of 96: the last group is short.
    "gptq_b4_g64_asym_v2": dict(model=GPTQ_LLAMA, bits=4, group_size=64, sym=False, format="gptq_v2"),
    "gptq_b4_g64_asym_actorder": dict(model=GPTQ_LLAMA, bits=4, group_size=64, sym=False, desc_act=True),
    "gptq_b4_column": dict(model=GPTQ_LLAMA, bits=4, group_size=-1, sym=True, config="quantization_config.json"),
    # Files of 2023 hold no g_idx.
    "gptq_b4_no_g_idx": dict(model=GPTQ_LLAMA, bits=4, group_size=32, sym=False, g_idx=False),
    "gptq_b4_qwen2_biases": dict(model=GPTQ_QWEN2, bits=4, group_size=32, sym=True),
    "gptq_b2_g32_asym": dict(model=GPTQ_LLAMA, bits=2, group_size=32, sym=False),
    "gptq_b2_column_v2": dict(model=GPTQ_LLAMA, bits=2, group_size=-1, sym=True, format="gptq_v2"),
    "gptq_b3_g32": dict(model=GPTQ_LLAMA, bits=3, group_size=32, sym=True),
    "gptq_b3_g64_asym_v2_actorder": dict(model=GPTQ_LLAMA, bits=3, group_size=64, sym=False, desc_act=True,
                                         format="gptq_v2"),
    "gptq_b8_g32": dict(model=GPTQ_LLAMA, bits=8, group_size=32, sym=True),
    "gptq_b8_column_asym_v2": dict(model=GPTQ_LLAMA, bits=8, group_size=-1, sym=False, format="gptq_v2"),
}
