"""Rows of the matrix: vision-language models, on text and on images."""

import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Picture
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from .data_forms import as_messages, none
from .rows import Row
from .workbench import make_model, make_tokenizer, users, with_catalogue


AREA = "Vision-language models"
IMAGE = "<image>"
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{% for part in m['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_processor():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([IMAGE])
    size = {"height": 16, "width": 16}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=TEMPLATE,
    )


def make_llava():
    """As many layers in the vision encoder as in the text decoder, so that one may be taken for the other."""
    image = make_processor().tokenizer.convert_tokens_to_ids(IMAGE)
    text = make_model().config
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, image_size=16, patch_size=8)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_id=image))
    assert image < text.vocab_size
    return model


def on_text():
    return {"model": make_llava()}


def on_images():
    rows = []
    for shade, row in enumerate(users()):
        picture = Picture.new("RGB", (16, 16), (10 * shade, 100, 200 - 10 * shade))
        rows.append({**as_messages(row), "images": [picture]})
    features = Features({"messages": [{"role": Value("string"), "content": Value("string")}], "images": List(Image())})
    dataset = Dataset.from_list(rows, features=features)
    return {"model": make_llava(), "train_dataset": dataset, "processing_class": make_processor()}


def reads_the_text_decoder(trainer):
    names = {name for log in trainer.state.log_history for name in log}
    assert {"ilrec/top1_layer_0", "ilrec/top1_layer_1"} <= names
    assert trainer.intermediate_layers == [0, 1]


def rows():
    return [
        Row(
            AREA,
            "text",
            "The layers are those of the text decoder.",
            arguments=on_text,
            check=reads_the_text_decoder,
        ),
        Row(
            AREA,
            "images",
            "Rows are tokenized batch by batch, as in TRL; every token with a label is a target.",
            {"max_length": None, "max_steps": 6},
            on_images,
            none,
            check=reads_the_text_decoder,
        ),
        Row(
            AREA,
            "images with a catalogue",
            "Targets are found in rows that are tokenized before training.",
            {"max_length": None},
            on_images,
            with_catalogue,
            refused="rows with images are tokenized batch by batch. Remove the `image` or `images` column",
            remedy="Leave out the images, or `item_trie`.",
        ),
    ]
