"""[`SoftmaxDPOTrainer`]: TRL's DPOTrainer with several rejected completions a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from ilrec_trl.trainer._trl import DataCollatorForPreference, pad


# Fields of DPOConfig that would change the loss, with the value that leaves it as it is.
_UNUSED = {
    "loss_type": ["sigmoid"],
    "loss_weights": None,
    "ld_alpha": None,
    "f_divergence_type": "reverse_kl",
    "label_smoothing": 0.0,
    "use_weighting": False,
    "precompute_ref_log_probs": False,
    "max_length": None,
    "router_aux_loss_coef": None,
}


@dataclass
class DataCollatorForSoftmaxPreference(DataCollatorForPreference):
    """
    As its parent, where `rejected_ids` is a list of n completions: of B rows, `input_ids` `(B + n * B, S)` holds the
    chosen completions, then the first rejected ones, then the second, and so on.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        counts = {len(example["rejected_ids"]) for example in examples}
        if len(counts) > 1:
            raise ValueError(f"Rows have {sorted(counts)} rejected completions; give every row the same number.")
        pairs = [(row["prompt_ids"], row["chosen_ids"]) for row in examples]
        pairs += [(row["prompt_ids"], row["rejected_ids"][n]) for n in range(counts.pop()) for row in examples]
        columns = {
            "input_ids": ([torch.tensor(prompt + completion) for prompt, completion in pairs], self.pad_token_id),
            "attention_mask": ([torch.ones(len(p) + len(c), dtype=torch.long) for p, c in pairs], 0),
            "completion_mask": ([torch.tensor([0] * len(p) + [1] * len(c)) for p, c in pairs], 0),
        }
        return {
            name: pad(rows, value, padding_side="right", pad_to_multiple_of=self.pad_to_multiple_of)
            for name, (rows, value) in columns.items()
        }


class SoftmaxDPOTrainer(DPOTrainer):
    """
    Trainer for softmax-DPO (S-DPO, https://huggingface.co/papers/2406.09215): the chosen item against several rejected
    ones at once. With the rewards r = beta * (log-probability of a completion minus that of the reference model),

        L = -log sigmoid(-log sum_rejected exp(r_rejected - r_chosen)),

    which is the cross-entropy of the chosen among all, and DPO where there is one rejected completion.

    Args:
        model, ref_model, args, train_dataset, eval_dataset, processing_class, ...:
            As in [`~trl.DPOTrainer`]. The data sets have the columns `prompt`, `chosen`, and `rejected`, a list of
            completions, equally many in each row. `args.beta` weighs the log-ratios.

    Raises:
        `ValueError`: for arguments of other losses, truncation by `max_length`, or rows of unlike numbers.
    """

    _tag_names = ["trl", "dpo", "softmax-dpo"]
    _name = "Softmax-DPO"

    def __init__(self, model: Any, ref_model: Any = None, args: DPOConfig | None = None, **kwargs: Any) -> None:
        if args is None:
            raise ValueError("`args` is required: a `DPOConfig` with `max_length=None`.")
        if wrong := [name for name, value in _UNUSED.items() if getattr(args, name) != value]:
            raise ValueError(
                f"`{wrong[0]}={getattr(args, wrong[0])!r}` is not for softmax-DPO; set it to {_UNUSED[wrong[0]]!r}."
            )
        self.num_rejected: int | None = None
        super().__init__(model, ref_model, args, **kwargs)
        if type(self.data_collator) is DataCollatorForPreference:
            self.data_collator = DataCollatorForSoftmaxPreference(
                self.data_collator.pad_token_id, pad_to_multiple_of=self.data_collator.pad_to_multiple_of
            )

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        """The parent tokenizes pairs: each row becomes n of them, and one again afterwards."""
        if not isinstance(dataset, Dataset):
            raise TypeError(f"The {dataset_name} data set is a {type(dataset).__name__}; expected a `Dataset`.")
        counts = {len(rejected) for rejected in dataset["rejected"]} | ({self.num_rejected} - {None})
        if len(counts) != 1 or 0 in counts:
            raise ValueError(
                f"Rows of the {dataset_name} data set have {sorted(counts)} rejected completions; give every row, of "
                "evaluation too, the same number, 1 or more."
            )
        self.num_rejected = count = counts.pop()
        pairs = dataset.map(_pairs, batched=True, fn_kwargs={"count": count})
        pairs = super()._prepare_dataset(pairs, processing_class, args, dataset_name)
        return pairs.map(
            _groups,
            batched=True,
            batch_size=1000 * count,
            fn_kwargs={"count": count},
            remove_columns=pairs.column_names,
        )

    def _compute_loss(self, model, inputs, return_outputs):
        completion_mask = inputs["completion_mask"]
        labels = inputs["input_ids"].masked_fill(completion_mask == 0, -100)
        model_inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        output = model(**model_inputs, labels=labels, fused_lm_head=True, use_cache=False)
        # Prompt-learning PEFT prepends virtual tokens to the outputs; keep the positions of the real ones
        log_probs = output.log_probs[:, 1 - completion_mask.size(1) :].sum(1).view(1 + self.num_rejected, -1)
        halves = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
        reference = torch.cat(halves).view_as(log_probs)  # (1 + n, B)
        rewards = self.beta * (log_probs - reference)  # (1 + n, B)
        loss = -rewards.log_softmax(0)[0].mean()
        self._record(rewards.detach(), log_probs.detach(), inputs["attention_mask"])
        return (loss, model(**model_inputs)) if return_outputs else loss

    def _record(self, rewards: Tensor, log_probs: Tensor, attention_mask: Tensor) -> None:
        """What the parent logs; a row is accurate where the chosen completion beats all rejected ones."""
        mode = "train" if self.model.training else "eval"
        figures = {
            "rewards/chosen": rewards[0],
            "rewards/rejected": rewards[1:].mean(0),
            "rewards/accuracies": (rewards[0] > rewards[1:]).all(0).float(),
            "rewards/margins": rewards[0] - rewards[1:].mean(0),
            "logps/chosen": log_probs[0],
            "logps/rejected": log_probs[1:].mean(0),
        }
        for name, values in figures.items():
            self._metrics[mode][name].append(self.accelerator.gather(values).mean().item())
        if mode == "train":
            self._total_train_tokens += self.accelerator.gather(attention_mask.sum()).sum().item()
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]


def _pairs(rows: dict[str, list], count: int) -> dict[str, list]:
    """Rows of one rejected completion each."""
    repeated = {name: [value for value in values for _ in range(count)] for name, values in rows.items()}
    return repeated | {"rejected": [text for texts in rows["rejected"] for text in texts]}


def _groups(rows: dict[str, list], count: int) -> dict[str, list]:
    """Tokens of each `count` pairs as one row again."""
    starts = range(0, len(rows["prompt_ids"]), count)
    for name in ("prompt_ids", "chosen_ids"):
        if any(rows[name][start + n] != rows[name][start] for start in starts for n in range(count)):
            raise ValueError(
                "A row's prompt ends with other tokens before one completion than before another; end prompts where a "
                "token ends, for example on a new line."
            )
    groups: dict[str, list] = {name: [rows[name][start] for start in starts] for name in ("prompt_ids", "chosen_ids")}
    return groups | {"rejected_ids": [rows["rejected_ids"][start : start + count] for start in starts]}
