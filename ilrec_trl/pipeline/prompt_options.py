"""What a command can be told about prompts and training rows."""

from dataclasses import dataclass, field


@dataclass
class PromptOptions:
    """How histories become prompts, and prompts training rows."""

    max_history: int = field(default=20, metadata={"help": "Number of items that a prompt shows at most."})
    rows: str = field(
        default="sequences",
        metadata={
            "help": "Training rows: 'sequences', one a user with every item after the first a target (cheap), or "
            "'targets', one a target.",
            "choices": ["sequences", "targets"],
        },
    )
    template: list[str] | None = field(
        default=None,
        metadata={
            "help": "Templates of a prompt: Jinja text with the variables history and separator, files, folders, or "
            "shipped ones such as introductions and instructions. Of several, each training row gets one by chance; "
            "evaluation uses the first."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens that a prompt with its target has at most; the oldest items are dropped. None: as many as "
            "max_history items take."
        },
    )
    conversational: bool = field(
        default=False, metadata={"help": "Prompts are chat messages; the tokenizer needs a chat template."}
    )
    system_prompt: str | None = field(default=None, metadata={"help": "First message of every conversation."})
    chat_template_kwargs: str | None = field(
        default=None,
        metadata={
            "help": "For the chat template, as JSON or as a mapping in the YAML file: '{\"enable_thinking\": false}'."
        },
    )
    tasks: str | None = field(
        default=None,
        metadata={
            "help": "Training tasks and how many times each takes its rows, as JSON or as a mapping in the YAML file: "
            '\'{"next_item": 1, "item_to_title": 0.5, "title_to_item": 1}\'. Also next_title and '
            "next_item_from_titles. None: next_item alone."
        },
    )
    prompt_seed: int = field(default=0, metadata={"help": "Seed that draws templates and rows of tasks."})
