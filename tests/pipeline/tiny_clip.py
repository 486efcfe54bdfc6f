"""A random CLIP of 16 numbers that knows a few words, as `save_pretrained` leaves it."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast


def write_clip(folder: Path) -> Path:
    known = ["[PAD]", "[UNK]", "[END]", "a", "photo", "of", "red", "green", "blue", "dog", "cat"]
    tokens = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="[PAD]", unk_token="[UNK]", eos_token="[END]", model_max_length=12
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = sizes | {"vocab_size": len(known), "max_position_embeddings": 12, "eos_token_id": 2}
    vision = sizes | {"image_size": 28, "patch_size": 14}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    size = {"height": 28, "width": 28}
    CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size), tokenizer).save_pretrained(folder)
    return folder
