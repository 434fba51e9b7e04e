"""Options of what the rewards come from."""

from dataclasses import dataclass, field


@dataclass
class TeacherOptions:
    """SASRec, the collaborative-filtering model behind the rewards."""

    sasrec: str | None = field(
        default=None, metadata={"help": "Folder of a trained SASRec. Without it one is trained where it is needed."}
    )
    sasrec_hidden_size: int | None = field(default=None, metadata={"help": "Hidden size of SASRec. None: 128."})
    sasrec_dropout: float | None = field(default=None, metadata={"help": "Dropout of SASRec. None: 0.5."})
    sasrec_learning_rate: float | None = field(default=None, metadata={"help": "Its peak learning rate. None: 0.001."})
    sasrec_epochs: float | None = field(
        default=None,
        metadata={
            "help": "Its epochs at most; the best on validation counts. None: 14, or 2,000 updates if those are more."
        },
    )
    sasrec_batch_size: int | None = field(default=None, metadata={"help": "Users a batch of SASRec. None: 64."})
    sasrec_item_tokens: bool | None = field(
        default=None,
        metadata={
            "help": "Whether SASRec learns vectors of the items' tokens, codes of semantic IDs or words of titles, "
            "beside those of the items, so that it knows what the language model reads. None: yes, but not above "
            "100,000 items, where its softmax is sampled."
        },
    )
    sasrec_folds: int | None = field(
        default=None,
        metadata={
            "help": "Cross-fitting: so many SASRecs, each trained without one fold of the users, whom it then scores. "
            "None: 5. 1: one SASRec of all users."
        },
    )
    sasrec_ensemble: int | None = field(
        default=None,
        metadata={"help": "So many SASRecs, or cross-fitted sets of them, whose mean probability counts. None: 1."},
    )
    reward_temperature: float = field(default=1.0, metadata={"help": "Temperature of SASRec's probabilities."})
    calibrate_rewards: bool = field(
        default=False,
        metadata={
            "help": "With folds: take the temperature at which SASRecs are as sure as they are right about users whom "
            "they have not seen."
        },
    )
    transition_share: float = field(
        default=0.0,
        metadata={"help": "Share of TransitionReward, what followed what for other users, in the rewards."},
    )

    @property
    def folds(self) -> int:
        """Number of folds; 1 where one SASRec has all users."""
        return 5 if self.sasrec_folds is None else self.sasrec_folds

    @property
    def members(self) -> int:
        """SASRecs, or cross-fitted sets of them, in the ensemble."""
        return 1 if self.sasrec_ensemble is None else self.sasrec_ensemble

    @property
    def several(self) -> bool:
        """Whether more than one SASRec is to be trained."""
        return self.sasrec is None and (self.folds != 1 or self.members != 1)
