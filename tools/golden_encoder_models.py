"""What tools/make_golden_encoders.py makes: the small encoders, as data.

Every model is a dictionary of config.json fields as published models write them; the first of its `architectures` is
the class that computes the golden tensors. Hidden sizes and head counts differ on purpose: heads of 8, 12
and 18 values, two to five of them. Models that are there for their head only are the smallest.
"""


def merged(base, **fields):
    return dict(base, **fields)


LABELS = dict(id2label={"0": "LOW", "1": "MIDDLE", "2": "HIGH"}, label2id={"LOW": 0, "MIDDLE": 1, "HIGH": 2})
SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=36)
HEAD_SIZES = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=28)
TEXT = dict(vocab_size=100, hidden_act="gelu", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
            max_position_embeddings=24, initializer_range=0.02)


def bert(architecture, sizes=SIZES, **fields):
    return dict(TEXT, **sizes, model_type="bert", architectures=[architecture], type_vocab_size=2, layer_norm_eps=1e-12,
                pad_token_id=0, position_embedding_type="absolute", **fields)


def roberta(architecture, model_type="roberta", sizes=SIZES, **fields):
    # The first position is pad_token_id + 1: two of the table's rows are never a token's.
    return dict(TEXT, **sizes, model_type=model_type, architectures=[architecture], type_vocab_size=1,
                layer_norm_eps=1e-5, pad_token_id=1, bos_token_id=0, eos_token_id=2, **fields)


def distilbert(architecture, dim, heads, **fields):
    return dict(model_type="distilbert", architectures=[architecture], vocab_size=100, dim=dim, n_heads=heads,
                n_layers=2, hidden_dim=28, activation="gelu", max_position_embeddings=24, sinusoidal_pos_embds=False,
                pad_token_id=0, dropout=0.1, attention_dropout=0.1, tie_weights_=True, **fields)


def albert(architecture, **fields):
    return merged(dict(TEXT, **SIZES, model_type="albert", architectures=[architecture], embedding_size=20,
                       type_vocab_size=2, layer_norm_eps=1e-12, pad_token_id=0, bos_token_id=2, eos_token_id=3,
                       num_hidden_groups=1, inner_group_num=1, net_structure_type=0, hidden_act="gelu_new"), **fields)


def electra(architecture, sizes, **fields):
    return dict(TEXT, **sizes, model_type="electra", architectures=[architecture], type_vocab_size=2,
                layer_norm_eps=1e-12, pad_token_id=0, **fields)


def mpnet(architecture, sizes=SIZES, **fields):
    return merged(dict(TEXT, **sizes, model_type="mpnet", architectures=[architecture], layer_norm_eps=1e-5,
                       pad_token_id=1, bos_token_id=0, eos_token_id=2, relative_attention_num_buckets=32), **fields)


def vit(architecture, model_type="vit", sizes=SIZES, **fields):
    return dict(sizes, model_type=model_type, architectures=[architecture], hidden_act="gelu", image_size=18,
                patch_size=6, num_channels=3, qkv_bias=True, layer_norm_eps=1e-12, hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0, **fields)


def clip_text(sizes=SIZES, **fields):
    return dict(sizes, model_type="clip_text_model", vocab_size=100, max_position_embeddings=20,
                hidden_act="quick_gelu", layer_norm_eps=1e-5, pad_token_id=1, bos_token_id=0, **fields)


def clip_vision(sizes=SIZES, **fields):
    return merged(dict(sizes, model_type="clip_vision_model", hidden_act="quick_gelu", layer_norm_eps=1e-5,
                       image_size=18, patch_size=6, num_channels=3), **fields)


def speech(architecture, model_type, **fields):
    return merged(dict(SIZES, model_type=model_type, architectures=[architecture], hidden_act="gelu",
                       layer_norm_eps=1e-5, conv_dim=[20, 20, 20], conv_kernel=[10, 3, 2], conv_stride=[5, 2, 2],
                       num_feat_extract_layers=3, conv_bias=False, feat_extract_norm="group",
                       feat_extract_activation="gelu", num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4,
                       do_stable_layer_norm=False, mask_time_prob=0.05, vocab_size=32), **fields)


# What TensorFlow's checkpoints called them; the oldest PyTorch files kept it.
OLD_NORM_NAMES = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
# torch before 2.1 names the parts of a normalised weight so, and most published files do.
OLD_WEIGHT_NORM_NAMES = (("parametrizations.weight.original0", "weight_g"),
                         ("parametrizations.weight.original1", "weight_v"))

# name -> config: config.json; and where they differ from the maker's defaults:
#   lengths  tokens of each row (samples for speech)
#   rename   replacements that turn transformers' present names of tensors into the published ones
#   prefix   what the published names begin with and transformers' present ones do not
#   pad_inside  row and position of a pad token among a row's real ones
#   std      standard deviation of the weights
#   eos      a token that ends every row, occurs nowhere before, and is the padding
ENCODERS = {
    "bert": dict(config=merged(bert("BertModel"), hidden_size=40, num_attention_heads=5, intermediate_size=48),
                 lengths=(7, 21, 1, 16)),
    "bert_mlm": dict(config=bert("BertForMaskedLM", HEAD_SIZES)),
    "bert_sequence_classification": dict(config=bert("BertForSequenceClassification", HEAD_SIZES, **LABELS)),
    "bert_token_classification": dict(config=bert("BertForTokenClassification", HEAD_SIZES, **LABELS)),
    "bert_question_answering": dict(config=bert("BertForQuestionAnswering", HEAD_SIZES)),
    "bert_old_names": dict(config=merged(bert("BertModel", HEAD_SIZES)), rename=OLD_NORM_NAMES),
    # bert-base-uncased as it is published: prefix, old names, pooler and both heads.
    "bert_pretraining": dict(config=bert("BertForPreTraining", HEAD_SIZES), rename=OLD_NORM_NAMES),
    # A pad token among real ones gets the position of padding, and counts for none of those after it.
    "roberta": dict(config=merged(roberta("RobertaModel"), hidden_size=36, num_attention_heads=3),
                    lengths=(7, 21, 1, 16), pad_inside=(3, 5)),
    "roberta_mlm": dict(config=roberta("RobertaForMaskedLM", sizes=HEAD_SIZES)),
    "roberta_sequence_classification": dict(
        config=roberta("RobertaForSequenceClassification", sizes=HEAD_SIZES, **LABELS)),
    "xlm_roberta": dict(config=roberta("XLMRobertaModel", "xlm-roberta", HEAD_SIZES)),
    "camembert_mlm": dict(config=roberta("CamembertForMaskedLM", "camembert", HEAD_SIZES)),
    "distilbert": dict(config=distilbert("DistilBertModel", 36, 2), lengths=(7, 21, 1, 16)),
    "distilbert_mlm": dict(config=distilbert("DistilBertForMaskedLM", 24, 3)),
    "distilbert_sequence_classification": dict(
        config=distilbert("DistilBertForSequenceClassification", 24, 3, seq_classif_dropout=0.2, **LABELS)),
    "distilbert_question_answering": dict(
        config=distilbert("DistilBertForQuestionAnswering", 24, 3, qa_dropout=0.1)),
    "albert": dict(config=albert("AlbertModel", num_hidden_layers=3, hidden_size=36, num_attention_heads=3),
                   lengths=(7, 21, 1, 16)),
    # Layers 0 and 1 are group 0, layer 2 is group 1; every layer runs its group's two. Six attentions with weights of
    # 0.3 would make all tokens alike, whatever the last ones compute.
    "albert_groups": dict(config=albert("AlbertModel", num_hidden_layers=3, num_hidden_groups=2, inner_group_num=2,
                                        hidden_act="gelu", hidden_size=24, num_attention_heads=3), std=0.2),
    "albert_mlm": dict(config=albert("AlbertForMaskedLM", hidden_size=24, num_attention_heads=3)),
    "electra": dict(config=electra("ElectraModel", SIZES, embedding_size=20), lengths=(7, 21, 1, 16)),
    "electra_sequence_classification": dict(
        config=electra("ElectraForSequenceClassification", HEAD_SIZES, embedding_size=24, **LABELS)),
    # Distances beyond 8 share buckets.
    "mpnet": dict(config=mpnet("MPNetModel", max_position_embeddings=50), lengths=(9, 47, 1, 30), pad_inside=(3, 5)),
    "mpnet_mlm": dict(config=mpnet("MPNetForMaskedLM", HEAD_SIZES)),
    "vit": dict(config=merged(vit("ViTModel"), hidden_size=36, num_attention_heads=3)),
    "vit_image_classification": dict(config=vit("ViTForImageClassification", sizes=HEAD_SIZES, **LABELS)),
    "deit": dict(config=vit("DeiTModel", "deit", HEAD_SIZES)),
    "deit_with_teacher": dict(
        config=vit("DeiTForImageClassificationWithTeacher", "deit", HEAD_SIZES, **LABELS)),
    # eos_token_id 2 is what OpenAI's configs say, wrongly: the text's last token is the one with the largest id.
    "clip_text": dict(config=clip_text(architectures=["CLIPTextModel"], eos_token_id=2), prefix="text_model.", eos=99),
    "clip_vision": dict(config=clip_vision(architectures=["CLIPVisionModel"]), prefix="vision_model."),
    # A true eos_token_id: larger ids may come before it.
    "clip": dict(config=dict(model_type="clip", architectures=["CLIPModel"], projection_dim=20,
                             logit_scale_init_value=2.6592, text_config=clip_text(HEAD_SIZES, eos_token_id=60),
                             vision_config=clip_vision(merged(HEAD_SIZES, num_attention_heads=2))), eos=60),
    "wav2vec2": dict(config=speech("Wav2Vec2Model", "wav2vec2"), rename=OLD_WEIGHT_NORM_NAMES),
    "wav2vec2_stable": dict(config=speech("Wav2Vec2Model", "wav2vec2", feat_extract_norm="layer", conv_bias=True,
                                          do_stable_layer_norm=True, **HEAD_SIZES)),
    "hubert": dict(config=speech("HubertModel", "hubert", feat_proj_layer_norm=True, **HEAD_SIZES),
                   rename=OLD_WEIGHT_NORM_NAMES),
    "whisper_encoder": dict(config=dict(
        model_type="whisper", architectures=["WhisperForConditionalGeneration"], is_encoder_decoder=True,
        vocab_size=100, num_mel_bins=10, d_model=24, encoder_layers=2, encoder_attention_heads=3, encoder_ffn_dim=28,
        decoder_layers=1, decoder_attention_heads=3, decoder_ffn_dim=8, max_source_positions=14,
        max_target_positions=8, activation_function="gelu", scale_embedding=False, pad_token_id=1, bos_token_id=1,
        eos_token_id=1, decoder_start_token_id=2)),
}
