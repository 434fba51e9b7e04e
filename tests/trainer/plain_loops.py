"""The loss of a batch by plain loops, one row and one position at a time."""

import torch
from datasets import Dataset

from tests import references


def fixed_scores(trie):
    """A reward function that depends on the history, and its scores."""
    generator = torch.Generator().manual_seed(3)
    table = torch.rand(len(trie), len(trie), generator=generator)

    def reward_func(histories, **columns):
        return torch.stack([table[trie.index_of(history)].mean(0) for history in histories])

    return reward_func


def naive_batch_loss(model, trainer, rows, sequences, scores, config, mined_from_last=False):
    """Sum over the target positions of METHOD's total loss, with a plain forward and plain loops, a row at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for row, row_scores in zip(rows, scores, strict=True):
        prompt = [token for item in row["history"] for token in sequences[item]]
        target = sequences[row["item"]]
        ids = torch.tensor([[*prompt, *target, trainer.processing_class.eos_token_id]])
        hidden = model.model(input_ids=ids, output_hidden_states=True)
        last_logits = model.lm_head(hidden.last_hidden_state)[0]
        raw = [hidden.hidden_states[layer + 1] for layer in trainer.intermediate_layers]
        layer_logits = [model.lm_head(model.model.norm(states))[0] for states in raw]
        for offset, token in enumerate([*target, trainer.processing_class.eos_token_id]):
            position = len(prompt) + offset - 1
            last = last_logits[position]
            if offset == len(target):  # the end token is no part of these items
                total = total - references.naive_log_softmax(last)[token]
                continue
            vocabulary = list(range(len(last)))
            if config.layer_vocabulary == "items" and config.restrict_to_items:
                vocabulary = sorted({tokens[offset] for tokens in sequences.values()})
            layers, seen = [logits[position][vocabulary] for logits in layer_logits], last[vocabulary]
            below = [item for item, tokens in sequences.items() if tokens[:offset] == target[:offset]]
            following = {sequences[item][offset] for item in below}
            known = following if config.restrict_to_items else range(1, len(trainer.processing_class))
            allowed = [v in known for v in vocabulary]
            miners = [[value.detach() for value in seen]] if mined_from_last else layers
            negatives = references.naive_negatives(
                miners,
                seen,
                vocabulary.index(token),
                selection=config.negative_selection,
                threshold=config.negative_threshold,
                top_k=config.negative_top_k,
                allowed=allowed,
            )
            weights = dict(zip(vocabulary, references.naive_weights(miners, negatives), strict=True))
            weights = [weights.get(v, 0.0) for v in range(len(last))]
            negatives = {vocabulary[token_index] for token_index in negatives}
            total = total + references.naive_cpo(
                last, token, weights, beta=trainer.cpo_beta, penalty=config.cpo_penalty
            )
            total = total + config.cpd_weight * references.naive_cpd(layers, seen)
            mass = {v: sum(row_scores[item] for item in below if sequences[item][offset] == v) for v in following}
            rewards = [mass.get(v, 0.0) / sum(mass.values()) for v in range(len(last))]
            beside = negatives if config.crr_scope == "negatives" else following
            total = total + config.crr_weight * references.naive_crr(
                last, token, beside, rewards, temperature=config.crr_temperature
            )
    return total


def check_loss_and_gradient(
    trainer_class, config, make_model, rows, tokenizer, sequences, trie, mined_from_last=False
):
    """Loss and gradient of a trainer on one batch equal those of plain loops."""
    reward_func = fixed_scores(trie)
    trainer = trainer_class(
        make_model().double(),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        item_trie=trie,
        reward_func=reward_func,
    )
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(len(rows))])
    count = int((batch["labels"] != -100).sum())
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(count))
    loss.backward()

    twin = make_model().double()
    scores = reward_func([row["history"] for row in rows]).double().tolist()
    named = [dict(zip(trie.item_ids, values, strict=True)) for values in scores]
    expected = naive_batch_loss(twin, trainer, rows, sequences, named, config, mined_from_last) / count
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    for (name, parameter), other in zip(trainer.model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-5, atol=1e-7, msg=name)
