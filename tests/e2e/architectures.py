"""Architectures of `transformers` by tiny random configurations, as a space file names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VOCABULARY = 100

_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    # Larger than usual: the outputs of so small a model would hardly differ.
    "initializer_range": 0.2,
}
_VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": 0.2,
}
_CLIP = {
    "text_config": {**_BERT, "projection_dim": 16, "bos_token_id": 1, "eos_token_id": 2},
    "vision_config": {**_VISION, "projection_dim": 16},
    "projection_dim": 16,
}
_WAV2VEC2 = {
    **{key: value for key, value in _BERT.items() if key != "max_position_embeddings"},
    "conv_dim": [16, 16, 16],
    "conv_kernel": [10, 3, 3],
    "conv_stride": [5, 2, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
}
_WHISPER = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_mel_bins": 16,
    "max_source_positions": 40,
    "max_target_positions": 20,
    "classifier_proj_size": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}

_IDS = {"shape": ["length"], "minimum": 5, "maximum": VOCABULARY - 1}
_MASK = {"shape": ["length"], "minimum": 1, "maximum": 1}
_TYPES = {"shape": ["length"], "minimum": 0, "maximum": 1}
_LENGTHS = {"lengths": {"uniform": [4, 16]}}

TEXT: Mapping[str, Any] = {"inputs": {"input_ids": _IDS, "attention_mask": _MASK}, **_LENGTHS}
TEXT_OF_16: Mapping[str, Any] = {
    "inputs": {name: {**tensor, "shape": [16]} for name, tensor in TEXT["inputs"].items()}
}
PAIR: Mapping[str, Any] = {"inputs": {**TEXT["inputs"], "token_type_ids": _TYPES}, **_LENGTHS}
CHOICES: Mapping[str, Any] = {
    "inputs": {
        "input_ids": {**_IDS, "shape": ["choices", "length"]},
        "attention_mask": {**_MASK, "shape": ["choices", "length"]},
    },
    "dimensions": {"choices": {"uniform": [2, 4]}},
    **_LENGTHS,
}
TRANSLATION: Mapping[str, Any] = {
    "inputs": {**TEXT["inputs"], "decoder_input_ids": {**_IDS, "shape": ["written"]}},
    "dimensions": {"written": {"uniform": [2, 8]}},
    **_LENGTHS,
}


def image(size: int = 32) -> dict[str, Any]:
    """An image of one size."""
    tensor = {"data_type": "FP32", "shape": [3, size, size], "minimum": -1, "maximum": 1}
    return {"inputs": {"pixel_values": tensor}}


TEXT_AND_IMAGE: Mapping[str, Any] = {
    "inputs": {**TEXT["inputs"], **image()["inputs"]},
    **_LENGTHS,
}


def images(*sizes: int) -> dict[str, Any]:
    """Images of free height and width."""
    tensor = {"data_type": "FP32", "shape": [3, "height", "width"], "minimum": -1, "maximum": 1}
    free = {"weights": dict.fromkeys(sizes, 1.0)}
    return {"inputs": {"pixel_values": tensor}, "dimensions": {"height": free, "width": free}}


def waveform(*sizes: int) -> dict[str, Any]:
    """A waveform of a free number of samples."""
    tensor = {"data_type": "FP32", "shape": ["samples"], "minimum": -1, "maximum": 1}
    sizes_of = {"samples": {"weights": dict.fromkeys(sizes, 1.0)}}
    return {"inputs": {"input_values": tensor}, "dimensions": sizes_of}


def spectrogram(name: str, *shape: int) -> dict[str, Any]:
    """A spectrogram of one size."""
    tensor = {"data_type": "FP32", "shape": list(shape), "minimum": -1, "maximum": 1}
    return {"inputs": {name: tensor}}


@dataclass(frozen=True)
class Architecture:
    """A class of `transformers`, a tiny configuration of it, and its requests.

    Attributes:
        requests: `inputs`, `lengths`, `dimensions` and `outputs` of the space file.
        refusal: what the message must hold, where the class is refused.
    """

    class_name: str
    config: Mapping[str, Any]
    requests: Mapping[str, Any] = field(default_factory=lambda: TEXT)
    refusal: str = ""

    @property
    def section(self) -> dict[str, Any]:
        """The model's section of the space file."""
        source = {"class": self.class_name, "config": dict(self.config)}
        return {"source": source, **self.requests}


ARCHITECTURES = (
    Architecture("BertForSequenceClassification", {**_BERT, "num_labels": 3}, PAIR),
    Architecture("BertForTokenClassification", {**_BERT, "num_labels": 5}),
    Architecture("BertForQuestionAnswering", _BERT, PAIR),
    Architecture("BertForMaskedLM", _BERT),
    Architecture("BertForMultipleChoice", _BERT, CHOICES),
    Architecture("BertModel", _BERT),
    Architecture("MPNetModel", _BERT),
    Architecture(
        "DistilBertForSequenceClassification",
        {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64,
         "max_position_embeddings": 64, "initializer_range": 0.2},
    ),
    Architecture("RobertaForSequenceClassification", _BERT),
    Architecture("XLMRobertaForTokenClassification", _BERT),
    Architecture("AlbertForSequenceClassification", {**_BERT, "embedding_size": 16}),
    Architecture("ElectraForSequenceClassification", {**_BERT, "embedding_size": 16}),
    Architecture(
        "DebertaV2ForSequenceClassification",
        {**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    ),
    Architecture(
        "MobileBertForSequenceClassification",
        {**_BERT, "embedding_size": 16, "intra_bottleneck_size": 16},
    ),
    Architecture(
        "FunnelForSequenceClassification",
        {"vocab_size": VOCABULARY, "block_sizes": [1, 1], "d_model": 32, "n_head": 2,
         "d_head": 16, "d_inner": 64},
        refusal="write a number for length in the inputs' shapes",
    ),
    Architecture(
        "FunnelForSequenceClassification",
        {"vocab_size": VOCABULARY, "block_sizes": [1, 1], "d_model": 32, "n_head": 2,
         "d_head": 16, "d_inner": 64},
        TEXT_OF_16,
    ),
    Architecture(
        "LongformerForSequenceClassification", {**_BERT, "attention_window": [4]},
        refusal="write a number for length in the inputs' shapes",
    ),
    Architecture("BigBirdForSequenceClassification", {**_BERT, "attention_type": "block_sparse",
                                                      "block_size": 4, "num_random_blocks": 1}),
    Architecture("ModernBertForSequenceClassification", {**_BERT, "pad_token_id": 0}),
    Architecture(
        "GPT2ForSequenceClassification",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64,
         "pad_token_id": 0, "use_cache": False},
    ),
    Architecture(
        "GPT2LMHeadModel",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    ),
    Architecture(
        "LlamaForSequenceClassification",
        {**_BERT, "num_key_value_heads": 2, "pad_token_id": 0},
    ),
    Architecture(
        "T5EncoderModel",
        {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2,
         "num_heads": 2},
    ),
    Architecture(
        "T5ForConditionalGeneration",
        {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1,
         "num_heads": 2},
        TRANSLATION,
    ),
    Architecture(
        "CLIPTextModelWithProjection",
        {**_BERT, "projection_dim": 16, "bos_token_id": 1, "eos_token_id": 2},
    ),
    Architecture("CLIPVisionModelWithProjection", {**_VISION, "projection_dim": 16}, image()),
    Architecture(
        "CLIPModel", _CLIP, TEXT_AND_IMAGE,
        refusal="list the other outputs under `outputs`",
    ),
    Architecture(
        "CLIPModel", _CLIP, {**TEXT_AND_IMAGE, "outputs": ["text_embeds", "image_embeds"]},
    ),
    Architecture("ViTForImageClassification", _VISION, image()),
    Architecture("DeiTForImageClassification", _VISION, image()),
    Architecture(
        "SwinForImageClassification",
        {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2],
         "window_size": 4},
        image(),
    ),
    Architecture(
        "ResNetForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1],
         "layer_type": "basic"},
        images(32, 48),
    ),
    Architecture(
        "ConvNextForImageClassification",
        {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2},
        images(32, 64),
    ),
    Architecture(
        "MobileNetV2ForImageClassification",
        {"depth_multiplier": 0.25, "image_size": 32, "initializer_range": 0.3},
        image(),
    ),
    Architecture(
        "YolosForObjectDetection",
        {**_VISION, "image_size": [32, 32], "num_detection_tokens": 5},
        image(),
    ),
    Architecture(
        "SegformerForSemanticSegmentation",
        {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [16, 32],
         "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2],
         "mlp_ratios": [2, 2], "decoder_hidden_size": 16, "initializer_range": 0.2},
        images(32, 64),
    ),
    Architecture(
        "DetrForObjectDetection",
        {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64,
         "decoder_ffn_dim": 64, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
         "num_queries": 5,
         "backbone_config": {"model_type": "resnet", "embedding_size": 16,
                             "hidden_sizes": [16, 32], "depths": [1, 1],
                             "layer_type": "basic", "out_features": ["stage2"]}},
        image(),
    ),
    Architecture("Wav2Vec2ForSequenceClassification", _WAV2VEC2, waveform(2000, 3000)),
    Architecture("Wav2Vec2ForCTC", _WAV2VEC2, waveform(2000, 3000)),
    Architecture(
        "HubertForSequenceClassification", _WAV2VEC2, waveform(2000, 3000),
    ),
    Architecture(
        "ASTForAudioClassification",
        {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 64, "patch_size": 8, "max_length": 32, "num_mel_bins": 16,
         "frequency_stride": 8, "time_stride": 8},
        spectrogram("input_values", 32, 16),
    ),
    Architecture("WhisperForAudioClassification", _WHISPER, spectrogram("input_features", 16, 80)),
)  # fmt: skip
