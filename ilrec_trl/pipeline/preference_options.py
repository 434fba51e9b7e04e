"""What training can be told about preference steps, which follow supervised fine-tuning."""

from dataclasses import dataclass, field


@dataclass
class PreferenceOptions:
    """DPO, softmax-DPO and GRPO; SFT and ILRec have no use for these."""

    preference_start: float = field(
        default=3.0,
        metadata={
            "help": "For dpo, softmax_dpo and grpo: epochs of SFT before. What they leave of the budget follows."
        },
    )
    preference_steps: int | None = field(
        default=None,
        metadata={
            "help": "Updates after those epochs. None: as many as SFT would make in the rest of --num_train_epochs."
        },
    )
    preference_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of these updates. None: a tenth of --learning_rate."}
    )
    preference_beta: float = field(
        default=1.0, metadata={"help": "For dpo and softmax_dpo: weight of the log-ratio to the model after SFT."}
    )
    num_negatives: int = field(default=3, metadata={"help": "For softmax_dpo: sampled negatives a target; dpo has 1."})
    negative_sampling: str = field(
        default="uniform",
        metadata={
            "help": "Negatives are drawn from the catalogue without the user's items: 'uniform', or by 'popularity'.",
            "choices": ["uniform", "popularity"],
        },
    )
    grpo_rollouts: int = field(default=8, metadata={"help": "For grpo: items sampled a prompt."})
    grpo_prefix_weight: float = field(
        default=0.0,
        metadata={
            "help": "For grpo: reward of the share of the target's tokens that a sampled item begins with, beside 1 "
            "for the target."
        },
    )
