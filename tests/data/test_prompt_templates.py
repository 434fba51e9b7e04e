"""Templates: shipped, from files and folders, and every reason to refuse one."""

import dataclasses

import pytest

from ilrec_trl import ItemCatalog, PromptRenderer
from ilrec_trl.data.prompt_templates import load_templates, shipped_templates


TITLES = ItemCatalog.from_titles({"g": "Guitar", "s": "Strings", "p": "(2 Pack) Picks"})
IDS = ItemCatalog.from_semantic_ids({"g": ["<a_0>", "<b_1>"], "s": ["<a_1>", "<b_0>"]})


def test_the_shipped_templates_are_sound_and_end_where_tokens_end():
    shipped = shipped_templates()
    assert {"titles", "semantic_ids", "introductions", "instructions"} < set(shipped)
    for name, texts in shipped.items():
        templates = load_templates(name)
        assert [template.source for template in templates] == texts
        for template in templates:
            one_item = name in ("item_to_title", "title_to_item")
            assert template.shows_one == one_item
            assert template.appends == (name in ("titles", "semantic_ids", "introductions"))
            if name != "semantic_ids":
                assert template.render(["Guitar"], "\n").endswith("\n")
                renderer = PromptRenderer(TITLES, template=template.source, max_history=1 if one_item else 20)
                assert "Guitar" in renderer.render(["g"])


def test_a_file_a_folder_and_a_list(tmp_path):
    (tmp_path / "2.jinja").write_text("Two: {{ history | join('; ') }}\n")
    (tmp_path / "1.jinja").write_text("One:\n{% for item in history %}{{ item }}\n{% endfor -%}\n")
    (tmp_path / "notes.txt").write_text("{{ nothing }}")
    one, two = PromptRenderer(TITLES, template=tmp_path / "1.jinja"), PromptRenderer(TITLES, template=str(tmp_path))
    assert one.render(["g", "s"]) == "One:\nGuitar\nStrings\n"
    assert [two.render(["g", "s"], variant) for variant in (0, 1)] == [
        one.render(["g", "s"]),
        "Two: Guitar; Strings\n",
    ]
    mixed = load_templates(["titles", tmp_path, "Three: {{ history | join }}\n"])
    assert [template.render(["x"], "\n")[:3] for template in mixed] == ["The", "One", "Two", "Thr"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Bought:\n{% for item in itmes %}{{ item }}{% endfor %}\n", r"'itmes' is undefined \(line 2\)"),
        ("{{ history | join }}{{ user }}", "'user' is undefined"),
        ("{% for item in history %}{{ item }}", "is not a Jinja template: .*endfor"),
        ("{{ history | shorten }}", "is not a Jinja template: No filter named 'shorten'"),
        ("{{ history[-20:] | join(', ') }}\n", "drops or changes items: of a history of 60, item 1"),
        ("{{ history[1:] | join(', ') }}\n", "drops or changes items: of a history of 1, item 1"),
        ("{{ history | length }} items\n", "drops or changes"),
        ("{{ history | join(', ') | upper }}\n", "drops or changes"),
        ("{{ history | join(', ') | e }}\n", "drops or changes"),
        ("{{ history }}\n", "drops or changes"),
        ("{{ history | unique | reverse | join(', ') }}\n", "in another order: of a history of 2, item 2"),
        ("{{ history | sort | join(', ') }}\n", "in another order"),
        ("{{ history[2] }}{{ history | join }}\n", "fails for a history of 1 items: list object has no element 2"),
        ("{{ 'Bought: ' ~ separator }}", "drops or changes"),
        ("{{ item | lower }}", "drops or changes"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_when_it_is_loaded(template, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_templates(template)
    file = tmp_path / "mine.jinja"
    file.write_text(template)
    with pytest.raises(ValueError, match=f"mine.jinja.*{message}"):
        load_templates(file)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="'instruction', which is neither .* shipped instructions, introductions"
    ):
        load_templates("instruction")
    with pytest.raises(FileNotFoundError, match="holds no template"):
        load_templates(tmp_path)
    with pytest.raises(ValueError, match="empty list of templates"):
        load_templates([])
    with pytest.raises(FileNotFoundError, match="Got the template ''"):
        load_templates("")


@pytest.mark.parametrize(
    ("options", "end"),
    [
        ({"template": "Bought {{ history | join(', ') }}. Next: "}, "Next: "),
        ({"template": "Bought {{ history | join(', ') }}. Next:"}, "Next:"),
        ({"separator": "; "}, "; "),
        ({"separator": ";"}, ";"),
    ],
)
def test_without_a_tokenizer_prompts_before_titles_end_with_a_new_line_or_an_end_token(options, end):
    with pytest.raises(ValueError, match=f"ends a prompt with .*{end}'.*End it with a new line"):
        PromptRenderer(TITLES, **options)
    # Semantic-ID tokens join with nothing, and a chat template puts tokens of its own between
    assert PromptRenderer(IDS, **options).render(["g"]).endswith(end)
    assert PromptRenderer(TITLES, conversational=True, **options).render(["g"]).endswith(end)


@pytest.mark.parametrize("separator", ["\n", ";\n", "</s>", "<|endoftext|>", "[EOS]"])
def test_ends_that_join_with_no_title(separator):
    assert PromptRenderer(TITLES, separator=separator).render(["g"]).endswith(f"Guitar{separator}")


def test_with_a_tokenizer_the_end_is_tried_with_every_title():
    tokenizer = TITLES.build_tokenizer(300)
    # Byte-level tokenizers split before letters, and join what is no letter: only one title shows the fault
    assert PromptRenderer(
        ItemCatalog.from_titles({"g": "Guitar"}), template="{{ history | join }}!", tokenizer=tokenizer
    )
    joining = ItemCatalog.from_titles({"g": "Guitar", "p": "!! !! !!", "q": "!! !!"}).build_tokenizer(300)
    catalog = ItemCatalog.from_titles({"g": "Guitar", "p": "! Picks"})
    with pytest.raises(
        ValueError, match=r"ends a prompt with '.*!', which the tokenizer joins with .*'! Picks' \(item 'p'"
    ):
        PromptRenderer(catalog, template="{{ history | join }}!", tokenizer=joining)
    assert PromptRenderer(catalog, tokenizer=joining).render(["p"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "instructions", "separator": "\n"}, "no template writes {{ separator }}"),
        ({"template": "item_to_title"}, "shows one `item`, not the `history`; set max_history=1"),
        ({"system_prompt": "Be brief."}, "Got system_prompt for prompts that are plain text"),
        ({"chat_template_kwargs": {"a": 1}}, "Got chat_template_kwargs for prompts that are plain text"),
        ({"max_length": 20}, "max_length=20 without a tokenizer"),
        ({"conversational": True, "tokenizer": TITLES.build_tokenizer(300)}, "no chat template"),
    ],
)
def test_options_that_need_others_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PromptRenderer(TITLES, **options)


def test_a_renderer_can_be_changed():
    changed = dataclasses.replace(PromptRenderer(TITLES), template="instructions")
    assert changed.render(["g"]) == PromptRenderer(TITLES, template="instructions").render(["g"])


def test_with_max_length_a_catalogue_lists_its_items():
    class Texts:
        def text(self, item_id):
            return item_id

    with pytest.raises(ValueError, match="must list its items as `item_ids`"):
        PromptRenderer(Texts(), tokenizer=TITLES.build_tokenizer(300), max_length=20)
