"""Rows of one and of several targets: their columns, their texts, and what is refused."""

import pytest

from ilrec_trl import PromptRenderer, next_item_dataset, sequence_dataset
from ilrec_trl.data.splits import NextItemExample, UserSequence


class SemanticIDs:
    kind = "semantic_ids"

    def text(self, item_id: str) -> str:
        if not item_id.isdigit():
            raise KeyError(item_id)
        return f"<a_{item_id}><b_{item_id}>"


class Titles:
    kind = "titles"

    def text(self, item_id: str) -> str:
        return f"Rock & Roll {item_id}."


def numbered(count: int) -> list[str]:
    return [str(number) for number in range(count)]


class TestNextItemDataset:
    def test_semantic_ids_without_a_word(self):
        dataset = next_item_dataset([NextItemExample("ann", ["1", "2"], "3")], SemanticIDs())
        assert dataset.column_names == ["prompt", "completion", "history", "item", "user"]
        assert dataset[0] == {
            "prompt": "<a_1><b_1><a_2><b_2>",
            "completion": "<a_3><b_3>",
            "history": ["1", "2"],
            "item": "3",
            "user": "ann",
        }

    def test_titles_end_with_a_new_line_and_are_not_escaped(self):
        row = next_item_dataset([NextItemExample("ann", ["1", "2"], "3")], Titles())[0]
        assert row["prompt"] == "The user bought, in order:\nRock & Roll 1.\nRock & Roll 2.\n"
        assert row["completion"] == "Rock & Roll 3."

    def test_oldest_items_are_dropped(self):
        row = next_item_dataset([NextItemExample("ann", numbered(30), "99")], SemanticIDs(), max_history=2)[0]
        assert row["history"] == ["28", "29"]
        assert row["prompt"] == "<a_28><b_28><a_29><b_29>"

    def test_conversation(self):
        example = NextItemExample("ann", ["1"], "3")
        options = {"conversational": True, "system_prompt": "Be brief.", "chat_template_kwargs": {"think": False}}
        row = next_item_dataset([example], Titles(), **options)[0]
        assert row["prompt"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "The user bought, in order:\nRock & Roll 1.\n"},
        ]
        assert row["completion"] == [{"role": "assistant", "content": "Rock & Roll 3."}]
        assert row["chat_template_kwargs"] == {"think": False}
        row = next_item_dataset([example], Titles(), conversational=True)[0]
        assert [message["role"] for message in row["prompt"]] == ["user"]
        assert "chat_template_kwargs" not in row

    def test_own_template(self):
        template = "{{ history | length }} items:{{ separator }}{{ history | join(separator) }}\n"
        row = next_item_dataset(
            [NextItemExample("ann", ["1", "2"], "3")], SemanticIDs(), template=template, separator=" "
        )[0]
        assert row["prompt"] == "2 items: <a_1><b_1> <a_2><b_2>\n"

    def test_a_template_is_drawn_for_each_row_and_evaluation_has_the_first(self):
        examples = [NextItemExample("ann", ["1"], "2")] * 60
        templates = [f"{number}: {{{{ history | join }}}}\n" for number in range(3)]
        drawn = [
            next_item_dataset(examples, Titles(), template=templates, seed=seed)["prompt"][:] for seed in (0, 0, 1)
        ]
        assert {prompt[0] for prompt in drawn[0]} == {"0", "1", "2"}
        assert drawn[0] == drawn[1] != drawn[2]
        assert {prompt[0] for prompt in next_item_dataset(examples, Titles(), template=templates)["prompt"]} == {"0"}
        assert PromptRenderer(Titles(), template=templates).prompts([["1"]])[0][0] == "0"

    def test_prompts_to_recommend_for_are_those_of_the_rows(self):
        renderer = PromptRenderer(Titles(), max_history=2, template="instructions")
        histories = [numbered(5), ["7"]]
        rows = next_item_dataset([NextItemExample("ann", history, "9") for history in histories], renderer)
        assert renderer.prompts(histories) == rows["prompt"][:]
        with pytest.raises(ValueError, match="History 1 has an empty history"):
            renderer.prompts([["1"], []])
        with pytest.raises(TypeError, match=r"a PromptRenderer and \['max_history'\]"):
            next_item_dataset([], renderer, max_history=3)

    def test_the_words_of_the_answer_may_be_others(self):
        renderer = PromptRenderer(Titles(), targets=SemanticIDs())
        row = next_item_dataset([NextItemExample("ann", ["1"], "3")], renderer)[0]
        assert (row["prompt"], row["completion"]) == ("The user bought, in order:\nRock & Roll 1.\n", "<a_3><b_3>")
        with pytest.raises(ValueError, match="they are history too"):
            sequence_dataset([UserSequence("ann", ["1", "3"])], renderer)

    def test_refusals_name_row_user_and_item(self):
        with pytest.raises(ValueError, match=r"Row 1 \(user 'bob'\): item 'x' is not in the catalogue"):
            next_item_dataset([NextItemExample("ann", ["1"], "2"), NextItemExample("bob", ["x"], "2")], SemanticIDs())
        with pytest.raises(ValueError, match=r"Row 0 \(user 'bob'\): item 'x' is not in the catalogue"):
            next_item_dataset([NextItemExample("bob", ["2"], "x")], SemanticIDs())
        with pytest.raises(ValueError, match=r"Row 0 \(user 'ann'\) has an empty history"):
            next_item_dataset([NextItemExample("ann", [], "2")], SemanticIDs())
        with pytest.raises(ValueError, match="max_history=0"):
            next_item_dataset([NextItemExample("ann", ["1"], "2")], SemanticIDs(), max_history=0)
        with pytest.raises(ValueError, match="There is no row"):
            next_item_dataset([], SemanticIDs())


class TestSequenceDataset:
    def test_one_row_a_user(self):
        dataset = sequence_dataset([UserSequence("ann", ["1", "2", "3"]), UserSequence("bob", ["4"])], SemanticIDs())
        assert dataset.to_list() == [
            {
                "prompt": "<a_1><b_1>",
                "completion": "<a_2><b_2><a_3><b_3>",
                "history": ["1"],
                "item": ["2", "3"],
                "user": "ann",
            }
        ]

    @pytest.mark.parametrize("max_history", [1, 2, 3, 20])
    @pytest.mark.parametrize("length", [2, 3, 4, 21, 22, 50])
    def test_every_item_after_the_first_is_a_target_once(self, max_history, length):
        rows = sequence_dataset([UserSequence("ann", numbered(length))], SemanticIDs(), max_history=max_history)
        assert [item for row in rows for item in row["item"]] == numbered(length)[1:]
        for row in rows:
            first_target = int(row["item"][0])
            assert row["history"] == numbered(length)[first_target - len(row["history"]) : first_target]
            assert len(row["history"]) + len(row["item"]) <= max_history + 1
            assert len(row["history"]) >= min(first_target, max(1, max_history // 2))

    @pytest.mark.parametrize(("catalog", "separator"), [(SemanticIDs(), None), (Titles(), None), (Titles(), "</s>")])
    def test_each_target_sees_the_prompt_of_its_own_question(self, catalog, separator):
        sequence = UserSequence("ann", numbered(9))
        for row in sequence_dataset([sequence], catalog, separator=separator, max_history=4):
            text = row["prompt"] + row["completion"]
            for position, item in enumerate(row["item"]):
                history = row["history"] + row["item"][:position]
                question = next_item_dataset(
                    [NextItemExample("ann", history, item)], catalog, separator=separator, max_history=4
                )[0]
                assert text.startswith(question["prompt"] + question["completion"])
            assert text == question["prompt"] + question["completion"]

    def test_a_row_has_one_template(self):
        templates = [
            "A:\n{% for i in history %}{{ i }}\n{% endfor %}",
            "B:\n{% for i in history %}{{ i }}\n{% endfor %}",
        ]
        sequences = [UserSequence(user, numbered(9)) for user in numbered(20)]
        rows = sequence_dataset(sequences, Titles(), template=templates, seed=3, max_history=4)
        first = {user: row["prompt"][0] for user, row in zip(rows["user"], rows, strict=True)}
        assert set(first.values()) == {"A", "B"}
        assert all(row["prompt"][0] == first[row["user"]] for row in rows)

    @pytest.mark.parametrize(
        "template",
        [
            "{% for item in history %}{{ item }}{% endfor %}Next:\n",
            "{{ history | length }} items: {{ history | join }}\n",
            "{% for item in history %}- {{ item }}{% endfor %}",
        ],
    )
    def test_templates_that_do_more_than_append_are_refused(self, template):
        sequences = [UserSequence("ann", ["1", "2", "3"])]
        with pytest.raises(ValueError, match="a template that only appends"):
            sequence_dataset(sequences, SemanticIDs(), template=template)

    def test_conversation_and_refusals(self):
        row = sequence_dataset([UserSequence("ann", ["1", "2"])], SemanticIDs(), conversational=True)[0]
        assert row["completion"] == [{"role": "assistant", "content": "<a_2><b_2>"}]
        with pytest.raises(ValueError, match=r"The sequence of user 'bob': item 'x'"):
            sequence_dataset([UserSequence("ann", ["1", "2"]), UserSequence("bob", ["1", "x"])], SemanticIDs())
        with pytest.raises(ValueError, match="There is no row"):
            sequence_dataset([UserSequence("ann", ["1"])], SemanticIDs())
