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
    from .evaluation.ranking_metrics import MRR, NDCG, HitRate
    from .evaluation.recommend import recommend
    from .evaluation.recommendation_callback import RecommendationCallback
    from .evaluation.recommender import Recommendation, Recommender
    from .items.item_catalog import ItemCatalog
    from .items.item_trie import ItemTrie
    from .items.title_files import ItemTitles, read_titles
    from .model.merge_adapter import merge_adapter
    from .model.new_tokens import check_item_tokens_train, item_token_settings
    from .rewards.combined_rewards import CrossFittedReward, EnsembleReward
    from .rewards.rewards import RewardFunc, SASRecReward, ScoreMatrixReward, check_reward_func, save_scores
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
    "MRR",
    "NDCG",
    "CrossFittedReward",
    "DataCollatorForItemCompletion",
    "EnsembleReward",
    "HitRate",
    "ILRecConfig",
    "ILRecTrainer",
    "Interactions",
    "ItemCatalog",
    "ItemEncoder",
    "ItemTitles",
    "ItemTrie",
    "ItemTrieLogitsProcessor",
    "PromptRenderer",
    "Recommendation",
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
    "save_scores",
    "sequence_dataset",
    "task_dataset",
    "train_sasrec",
    "train_sasrec_group",
]

_NAMES = {
    ".data.interactions": ["Interactions"],
    ".data.prompt_renderer": ["PromptRenderer"],
    ".data.prompts": ["next_item_dataset", "sequence_dataset"],
    ".data.synthetic": ["generate_store"],
    ".data.tasks": ["task_dataset"],
    ".evaluation.evaluator": ["RecommendationEvaluator"],
    ".evaluation.exact_ranking": ["rank_items"],
    ".evaluation.logits_processor": ["ItemTrieLogitsProcessor"],
    ".evaluation.ranking_metrics": ["HitRate", "MRR", "NDCG"],
    ".evaluation.recommend": ["recommend"],
    ".evaluation.recommendation_callback": ["RecommendationCallback"],
    ".evaluation.recommender": ["Recommendation", "Recommender"],
    ".items.item_catalog": ["ItemCatalog"],
    ".items.item_trie": ["ItemTrie"],
    ".items.title_files": ["ItemTitles", "read_titles"],
    ".model.merge_adapter": ["merge_adapter"],
    ".model.new_tokens": ["check_item_tokens_train", "item_token_settings"],
    ".rewards.combined_rewards": ["CrossFittedReward", "EnsembleReward"],
    ".rewards.rewards": ["RewardFunc", "SASRecReward", "ScoreMatrixReward", "check_reward_func", "save_scores"],
    ".rewards.sasrec": ["SASRecConfig", "SASRecModel"],
    ".rewards.sasrec_group": ["SASRecGroup", "train_sasrec_group"],
    ".rewards.sasrec_training": ["evaluate_sasrec", "sasrec_training_arguments", "train_sasrec"],
    ".rewards.transitions": ["TransitionReward"],
    ".semantic_ids.item_encoder": ["ItemEncoder"],
    ".semantic_ids.semantic_ids": ["SemanticIds", "build_semantic_ids"],
    ".trainer.data_collator": ["DataCollatorForItemCompletion"],
    ".trainer.ilrec_config": ["ILRecConfig"],
    ".trainer.ilrec_trainer": ["ILRecTrainer"],
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
