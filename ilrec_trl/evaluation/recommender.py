"""[`Recommender`]: from a user's items to recommended ones, saved with everything it needs in one folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..data.prompt_renderer import PromptRenderer
from ..items.item_catalog import ItemCatalog
from ..items.item_trie import ItemTrie
from .recommend import recommend


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .item_filter import ItemSets

# Fields of a renderer that are data; its other parts are saved in files of their own
_PROMPT_FIELDS = ("separator", "max_history", "conversational", "system_prompt", "chat_template_kwargs", "max_length")


class Recommendation(NamedTuple):
    """
    A recommended item.

    Attributes:
        item (`str`): Its id.
        title (`str`, *optional*): Its title, where the catalogue has one.
        score (`float`): Its log-probability, in nats.
    """

    item: str
    title: str | None
    score: float


class Recommender:
    """
    A model with its tokenizer, catalogue, trie and prompts: item ids in, item ids out.

    Args:
        model ([`~transformers.PreTrainedModel`]): Causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        item_trie ([`ItemTrie`]): The items to choose from.
        renderer ([`PromptRenderer`]): Turns histories into prompts as in training. Its catalogue names the items.
        num_beams (`int`, *optional*, defaults to `20`): Beams of the search, and the most items that one call can ask
            for.

    Example:

    ```python
    recommender = Recommender(model, tokenizer, item_trie, PromptRenderer(catalog))
    for item, title, score in recommender.recommend([["i14", "i35"]], top_k=5, exclude_history=True)[0]:
        print(item, title, score)
    recommender.save_pretrained("recommender")
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        item_trie: ItemTrie,
        renderer: PromptRenderer,
        num_beams: int = 20,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.item_trie = item_trie
        self.renderer = renderer
        self.num_beams = num_beams
        catalog = renderer.catalog
        if not isinstance(catalog, ItemCatalog):
            raise TypeError(f"Got prompts over a {type(catalog).__name__}, expected an ItemCatalog.")
        self.catalog = catalog
        self._titles = dict(zip(catalog.item_ids, catalog.titles or [], strict=False))

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        *,
        top_k: int = 10,
        exclude_history: bool = False,
        allow: ItemSets | None = None,
        exclude: Sequence[Sequence[str]] | None = None,
        **options: Any,
    ) -> list[list[Recommendation]]:
        """
        Recommend items to users.

        Args:
            histories (`list[list[str]]`): Item ids of each user, oldest first. Prompts hold the latest ones, as many
                as in training.
            top_k (`int`, *optional*, defaults to `10`): Items for each user, at most `num_beams`.
            exclude_history (`bool`, *optional*, defaults to `False`): Do not recommend any item of a user's history.
            allow (*optional*):
                The only items to recommend, for all users or for each, in the forms that [`recommend`] takes.
            exclude (`list[list[str]]`, *optional*): Items not to recommend, one list for each user.
            **options (*optional*):
                `batch_size`, `memory_budget_mib` and `normalise` of [`recommend`].

        Returns:
            `list[list[Recommendation]]`: item, title and log-probability for each user, best first; fewer than `top_k`
            only if `allow` and `exclude` leave fewer.

        Raises:
            `ValueError`: for an empty history, an unknown item, more items than beams or than the catalogue has, or
                lists that are not one for each user.
        """
        if exclude is not None and len(exclude) != len(histories):
            raise ValueError(
                f"Got {len(exclude)} lists of items to exclude for {len(histories)} users, not one for each."
            )
        if exclude_history:
            added = exclude if exclude is not None else [[] for _ in histories]
            exclude = [[*history, *items] for history, items in zip(histories, added, strict=True)]
        ranked = recommend(
            self.model,
            self.tokenizer,
            self.renderer.prompts(histories),
            self.item_trie,
            top_k=top_k,
            num_beams=self.num_beams,
            allow=allow,
            exclude=exclude,
            chat_template_kwargs=self.renderer.chat_template_kwargs,
            **options,
        )
        return [
            [Recommendation(str(item), self._titles.get(str(item)), score) for item, score in row] for row in ranked
        ]

    def save_pretrained(self, directory: str | Path) -> None:
        """
        Write everything into `directory`: model and tokenizer in the format of transformers, `trie.safetensors` and
        `trie.json`, `catalog.json`, `item_map.json` (title, text and token ids of every item, for other programs) and
        `recommender.json` (prompts and beams).
        """
        self.model.save_pretrained(directory)
        self.save_items(directory)

    def save_items(self, directory: str | Path) -> None:
        """Write all of [`Recommender.save_pretrained`] but the model."""
        directory = Path(directory)
        self.tokenizer.save_pretrained(directory)
        self.item_trie.save(directory)
        self.catalog.save(directory)
        targets = self.renderer.targets or self.catalog
        items = {
            item: {"title": self._titles.get(item), "text": targets.text(item), "token_ids": token_ids}
            for item, token_ids in zip(map(str, self.item_trie.item_ids), self.item_trie.sequences(), strict=True)
        }
        _write_json(directory / "item_map.json", items)
        prompts = {name: getattr(self.renderer, name) for name in _PROMPT_FIELDS}
        prompts["template"] = [template.source for template in self.renderer.templates]
        prompts["targets"] = getattr(self.renderer.targets, "kind", None)
        if not self.renderer.templates[0].uses_separator:
            prompts["separator"] = None
        _write_json(directory / "recommender.json", {"format": 1, "num_beams": self.num_beams, "prompts": prompts})

    @classmethod
    def from_pretrained(cls, directory: str | Path, **options: Any) -> Recommender:
        """
        Read what [`Recommender.save_pretrained`] or `ilrec export` wrote.

        Args:
            directory (`str` or `Path`): The folder.
            **options (*optional*):
                Arguments of [`~transformers.PreTrainedModel.from_pretrained`], such as `dtype` and `device_map`.

        Raises:
            `FileNotFoundError`: if the folder holds no `recommender.json`.
            `ValueError`: if another version wrote it, or its parts do not belong together.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        directory = Path(directory)
        path = directory / "recommender.json"
        if not path.is_file():
            raise FileNotFoundError(f"{directory} holds no recommender.json; write it with `ilrec export` first.")
        about = json.loads(path.read_text(encoding="utf-8"))
        if about.get("format") != 1:
            raise ValueError(f"{path} is of format {about.get('format')}, expected 1. Export the model again.")
        catalog, item_trie = ItemCatalog.load(directory), ItemTrie.load(directory)
        missing = [item for item in item_trie.item_ids if item not in catalog]
        if missing:
            raise ValueError(
                f"The trie in {directory} has {len(missing)} items that the catalogue beside it lacks, such as "
                f"{missing[0]!r}. Export the model again."
            )
        prompts = about["prompts"]
        tokenizer = AutoTokenizer.from_pretrained(directory)
        targets = prompts.pop("targets")
        renderer = PromptRenderer(
            catalog, targets=catalog.as_kind(targets) if targets is not None else None, tokenizer=tokenizer, **prompts
        )
        model = AutoModelForCausalLM.from_pretrained(directory, **options).eval()
        item_trie.check_vocab_size(model.get_input_embeddings().weight.shape[0])
        return cls(model, tokenizer, item_trie, renderer, about["num_beams"])


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
