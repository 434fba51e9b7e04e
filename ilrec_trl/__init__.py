"""
ILRec for TRL: fine-tune a language model to recommend items, with hard negatives that the model's own intermediate
layers supply. Swap `SFTTrainer` for [`ILRecTrainer`].

Public names are imported when they are first used, so that `import ilrec_trl` costs nothing: importing a trainer pulls
in torch and transformers, which takes seconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__


if TYPE_CHECKING:
    from .data.interactions import Interactions
    from .data.prompt_renderer import PromptRenderer
    from .data.prompts import next_item_dataset, sequence_dataset
    from .data.synthetic import generate_store
    from .data.tasks import task_dataset
    from .evaluation.evaluator import RecommendationEvaluator
    from .evaluation.exact_ranking import rank_items
    from .evaluation.logits_processor import ItemTrieLogitsProcessor
    from .evaluation.recommend import recommend
    from .evaluation.recommendation_callback import RecommendationCallback
    from .evaluation.recommender import Recommender
    from .items.item_catalog import ItemCatalog
    from .items.item_trie import ItemTrie
    from .items.title_files import ItemTitles, read_titles
    from .model.merge_adapter import merge_adapter
    from .model.new_tokens import check_item_tokens_train, item_token_settings
    from .rewards.combined_rewards import CrossFittedReward, EnsembleReward
    from .rewards.rewards import RewardFunc, SASRecReward, ScoreMatrixReward, check_reward_func
    from .rewards.sasrec import SASRecConfig, SASRecModel
    from .rewards.sasrec_group import SASRecGroup, train_sasrec_group
    from .rewards.sasrec_training import evaluate_sasrec, sasrec_training_arguments, train_sasrec
    from .rewards.transitions import TransitionReward
    from .semantic_ids.item_encoder import ItemEncoder
    from .semantic_ids.semantic_ids import SemanticIds, build_semantic_ids
    from .trainer.data_collator import DataCollatorForItemCompletion
    from .trainer.ilrec_config import ILRecConfig
    from .trainer.ilrec_trainer import ILRecTrainer

__all__ = [
    "CrossFittedReward",
    "DataCollatorForItemCompletion",
    "EnsembleReward",
    "ILRecConfig",
    "ILRecTrainer",
    "Interactions",
    "ItemCatalog",
    "ItemEncoder",
    "ItemTitles",
    "ItemTrie",
    "ItemTrieLogitsProcessor",
    "PromptRenderer",
    "RecommendationCallback",
    "RecommendationEvaluator",
    "Recommender",
    "RewardFunc",
    "SASRecConfig",
    "SASRecGroup",
    "SASRecModel",
    "SASRecReward",
    "ScoreMatrixReward",
    "SemanticIds",
    "TransitionReward",
    "__version__",
    "build_semantic_ids",
    "check_item_tokens_train",
    "check_reward_func",
    "evaluate_sasrec",
    "generate_store",
    "item_token_settings",
    "merge_adapter",
    "next_item_dataset",
    "rank_items",
    "read_titles",
    "recommend",
    "sasrec_training_arguments",
    "sequence_dataset",
    "task_dataset",
    "train_sasrec",
    "train_sasrec_group",
]

_MODULES = {
    "CrossFittedReward": ".rewards.combined_rewards",
    "DataCollatorForItemCompletion": ".trainer.data_collator",
    "EnsembleReward": ".rewards.combined_rewards",
    "ILRecConfig": ".trainer.ilrec_config",
    "ILRecTrainer": ".trainer.ilrec_trainer",
    "Interactions": ".data.interactions",
    "ItemCatalog": ".items.item_catalog",
    "ItemEncoder": ".semantic_ids.item_encoder",
    "ItemTitles": ".items.title_files",
    "ItemTrie": ".items.item_trie",
    "ItemTrieLogitsProcessor": ".evaluation.logits_processor",
    "PromptRenderer": ".data.prompt_renderer",
    "RecommendationCallback": ".evaluation.recommendation_callback",
    "RecommendationEvaluator": ".evaluation.evaluator",
    "Recommender": ".evaluation.recommender",
    "RewardFunc": ".rewards.rewards",
    "SASRecConfig": ".rewards.sasrec",
    "SASRecGroup": ".rewards.sasrec_group",
    "SASRecModel": ".rewards.sasrec",
    "SASRecReward": ".rewards.rewards",
    "ScoreMatrixReward": ".rewards.rewards",
    "SemanticIds": ".semantic_ids.semantic_ids",
    "TransitionReward": ".rewards.transitions",
    "build_semantic_ids": ".semantic_ids.semantic_ids",
    "check_item_tokens_train": ".model.new_tokens",
    "check_reward_func": ".rewards.rewards",
    "evaluate_sasrec": ".rewards.sasrec_training",
    "generate_store": ".data.synthetic",
    "item_token_settings": ".model.new_tokens",
    "merge_adapter": ".model.merge_adapter",
    "next_item_dataset": ".data.prompts",
    "rank_items": ".evaluation.exact_ranking",
    "read_titles": ".items.title_files",
    "recommend": ".evaluation.recommend",
    "sasrec_training_arguments": ".rewards.sasrec_training",
    "sequence_dataset": ".data.prompts",
    "task_dataset": ".data.tasks",
    "train_sasrec": ".rewards.sasrec_training",
    "train_sasrec_group": ".rewards.sasrec_group",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
