"""
Naive float64 and plain-python twins of every loss, trie query and metric, written from the equations with plain loops.
Tests compare values and gradients with them; benchmarks use them as baselines.
"""

import math


# ---------------------------------------------------------------------------------------------------------- metrics


def naive_expected_metrics(start, ties, cuts=(1, 5, 10)):
    """Every metric for one user: average over each rank that the target may have, counted one by one."""
    totals = {f"hit@{k}": 0.0 for k in cuts} | {f"ndcg@{k}": 0.0 for k in cuts if k > 1} | {"mrr": 0.0}
    for place in range(ties):
        rank = start + place
        if math.isinf(rank):
            continue
        for k in cuts:
            if rank <= k:
                totals[f"hit@{k}"] += 1
                if k > 1:
                    totals[f"ndcg@{k}"] += 1 / math.log2(rank + 1)
        totals["mrr"] += 1 / rank
    return {name: total / ties for name, total in totals.items()}


# ------------------------------------------------------------------------------------------------ end of metrics


# ----------------------------------------------------------------------------------------------------------- losses
# METHOD, steps 1 to 4, for one position at a time. `layers` is a list of K rows of V logits and `last` a row of V
# logits; both may be tensors that require gradients, so that autograd differentiates the loops themselves.


def naive_softmax(row):
    highest = max(value.item() for value in row)
    exponentials = [(value - highest).exp() for value in row]
    total = sum(exponentials)
    return [value / total for value in exponentials]


def naive_log_softmax(row):
    highest = max(value.item() for value in row)
    normaliser = highest + sum((value - highest).exp() for value in row).log()
    return [value - normaliser for value in row]


def naive_ensemble(layers):
    return [sum(layer[v] for layer in layers) / len(layers) for v in range(len(layers[0]))]


def naive_negatives(layers, last, target, *, selection, threshold=None, top_k=None, allowed=None):
    """S_t, a set of token ids."""
    vocabulary = range(len(last))
    candidates = [v for v in vocabulary if v != target and (allowed is None or allowed[v])]
    if selection == "threshold":
        ensemble, final = naive_softmax(naive_ensemble(layers)), naive_softmax(last)
        return {v for v in candidates if ensemble[v] >= threshold * final[target]}
    chosen = set()
    for layer in layers:
        chosen |= set(sorted(candidates, key=lambda v: -layer[v].item())[:top_k])
    return chosen


def naive_weights(layers, negatives):
    """w_v for every token, 0 outside the negatives."""
    ensemble, members = naive_ensemble(layers), sorted(negatives)
    weights = [0.0] * len(layers[0])
    if members:
        for v, weight in zip(members, naive_softmax([ensemble[v].detach() for v in members]), strict=True):
            weights[v] = weight.item()
    return weights


def naive_cpo(last, target, weights, *, beta, penalty):
    mean = sum(value.item() for value in last) / len(last)
    terms = []
    for v in range(len(last)):
        if v == target or weights[v] == 0:
            terms.append(last[v])
        elif penalty == "additive":
            terms.append(last[v] + beta * weights[v])
        else:
            terms.append(last[v] + beta * weights[v] * (last[v] - mean if last[v].item() > mean else 0.0))
    highest = max(term.item() for term in terms)
    return highest + sum((term - highest).exp() for term in terms).log() - last[target]


def naive_cpd(layers, last):
    teacher = naive_log_softmax([value.detach() for value in last])
    divergences = []
    for layer in layers:
        student = naive_log_softmax(list(layer))
        divergences.append(sum(p.exp() * (p - q) for p, q in zip(teacher, student, strict=True)))
    return sum(divergences) / len(divergences)


def naive_crr(last, target, beside, rewards, *, temperature):
    """`beside`: tokens that stand beside the target; `rewards`: q_t(v) for every token."""
    members = sorted(set(beside) | {target})
    powers = {v: float(rewards[v]) ** (1 / temperature) for v in members}
    total = sum(powers.values())
    if len(members) == 1 or total == 0:
        return 0.0 * last[target]
    log_probs = naive_log_softmax(last)
    return -sum(powers[v] / total * log_probs[v] for v in members if powers[v] > 0)


# ---------------------------------------------------------------------------------------------------- end of losses


# --------------------------------------------------------------------------------------------------- items and search


def naive_items(sequences, prefix):
    """Ids of the items whose sequence starts with a prefix."""
    return {item for item, tokens in sequences.items() if list(tokens[: len(prefix)]) == list(prefix)}


def naive_next_tokens(sequences, prefix):
    """Tokens that follow a prefix in some item."""
    return sorted(
        {sequences[i][len(prefix)] for i in naive_items(sequences, prefix) if len(sequences[i]) > len(prefix)}
    )


def naive_token_rewards(sequences, scores, prefix):
    """q_t of METHOD's step 4 as {token: share}: mass of the items below prefix + token over that below the prefix."""
    total = math.fsum(scores[item] for item in naive_items(sequences, prefix))
    masses = {
        token: math.fsum(scores[item] for item in naive_items(sequences, [*prefix, token]))
        for token in naive_next_tokens(sequences, prefix)
    }
    return {token: mass / total if total > 0 else 0.0 for token, mass in masses.items()}


def naive_token_scores(model, prompt, sequences, normalise="vocabulary"):
    """
    Log-probability of each token of each item after a prompt: one forward pass an item, no cache, no padding. A share
    of all tokens, or of those that continue the prefix in some item.
    """
    import torch

    scores = {}
    for item, tokens in sequences.items():
        logits = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0].double()
        scores[item] = []
        for place, token in enumerate(tokens):
            row = logits[len(prompt) - 1 + place]
            if normalise == "continuations":
                rivals = row[naive_next_tokens(sequences, tokens[:place])]
            else:
                rivals = row
            scores[item].append(float(row[token] - rivals.logsumexp(dim=-1)))
    return scores


def naive_ranking(token_scores, sequences, excluded=()):
    """All distinct sequences that an item outside `excluded` has, with their scores, best first: by brute force."""
    totals = {tuple(sequences[item]): sum(token_scores[item]) for item in sequences if item not in excluded}
    return sorted(totals.items(), key=lambda pair: -pair[1])


def naive_beam_search(token_scores, sequences, num_beams, excluded=()):
    """
    Beam search with plain lists: `num_beams` unfinished prefixes go on at every step, finished ones are kept apart.
    The score of a prefix is read from any item that starts with it.
    """
    allowed = {item: list(tokens) for item, tokens in sequences.items() if item not in excluded}
    finished, running = [], [()]
    while running:
        longer = []
        for prefix in running:
            for token in naive_next_tokens(allowed, prefix):
                path = (*prefix, token)
                item = min(naive_items(allowed, path))
                found = (path, sum(token_scores[item][: len(path)]))
                (finished if len(allowed[item]) == len(path) else longer).append(found)
        longer.sort(key=lambda pair: -pair[1])
        running = [path for path, _ in longer[:num_beams]]
    return sorted(finished, key=lambda pair: -pair[1])[:num_beams]


# -------------------------------------------------------------------------------------------- end of items and search


# ----------------------------------------------------------------------------------------------------------- SASRec


def naive_sasrec_scores(model, history, row_length=None):
    """
    Logits (I,) in float64 of all items after `history` (item indices): one head, one query at a time, no batch. The
    last of the model's positions belongs to the last item of the row, of which `history` may be the beginning.
    """
    first = model.config.max_position_embeddings - (row_length or len(history))
    weights = {name: value.double() for name, value in model.state_dict().items()}

    def norm(vector, name):
        centred = vector - vector.mean()
        return centred / ((centred**2).mean() + 1e-5).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(vector, name):
        return weights[f"{name}.weight"] @ vector + weights[f"{name}.bias"]

    def gelu(vector):
        return vector * 0.5 * (1 + (vector / math.sqrt(2)).erf())

    items = weights["item_embedding.weight"][1:]
    positions = weights["position_embedding.weight"]
    states = [items[item] + positions[first + place] for place, item in enumerate(history)]
    for layer in range(model.config.num_hidden_layers):
        name = f"layers.{layer}"
        width = len(states[0])
        heads = model.config.num_attention_heads
        projected = [linear(norm(state, f"{name}.attention_norm"), f"{name}.query_key_value") for state in states]
        for place in range(len(states)):
            mixed = []
            for head in range(heads):
                part = slice(head * width // heads, (head + 1) * width // heads)
                query = projected[place][:width][part]
                keys = [vector[width : 2 * width][part] for vector in projected[: place + 1]]
                values = [vector[2 * width :][part] for vector in projected[: place + 1]]
                attention = [((query @ key) / math.sqrt(width / heads)).exp() for key in keys]
                mixed += sum(a * v for a, v in zip(attention, values, strict=True)) / sum(attention)
            state = states[place] + linear(query.new_tensor(mixed), f"{name}.attention_output")
            inner = gelu(linear(norm(state, f"{name}.feed_forward_norm"), f"{name}.feed_forward.0"))
            states[place] = state + linear(inner, f"{name}.feed_forward.3")
    last = norm(states[-1], "norm")
    return items @ last if model.output is None else linear(last, "output")


# ---------------------------------------------------------------------------------------------------- end of SASRec


# ---------------------------------------------------------------------------------------------------------- prompts


def naive_row_length(tokenizer, prompt, completion, chat_template_kwargs=None):
    """Tokens of one row as SFTTrainer prepares it: with the end token after a text, or through the chat template."""
    if isinstance(prompt, str):
        return len(tokenizer(prompt + completion + tokenizer.eos_token)["input_ids"])
    options = {"tokenize": True, "return_dict": True, **(chat_template_kwargs or {})}
    return len(tokenizer.apply_chat_template(prompt + completion, **options)["input_ids"])


def naive_shown(history, max_history, max_length, row_length):
    """Drop the oldest item, one at a time, until the row that `row_length(history)` measures fits; keep the newest."""
    shown = history[-max_history:]
    while len(shown) > 1 and row_length(shown) > max_length:
        shown = shown[1:]
    return shown


def naive_windows(items, number_shown):
    """Context and targets of a sequence's rows; `number_shown(history)` counts the items that a prompt shows."""
    rows, target = [], 1
    while target < len(items):
        context = max(1, number_shown(items[:target]) // 2)
        history, targets = items[target - context : target], []
        # Another target, as long as its prompt would show all that the row shows before it
        while target < len(items) and (not targets or number_shown(items[:target]) >= len(history) + len(targets)):
            targets.append(items[target])
            target += 1
        rows.append((history, targets))
    return rows


# --------------------------------------------------------------------------------------------------- end of prompts


# ---------------------------------------------------------------------------------------------------- semantic IDs


def naive_admit(distances, groups, capacity, occupied):
    """
    Deferred acceptance as the textbook has it: one item asks at a time; a full code keeps its nearest, of equals the
    smaller row. All arguments are lists; `occupied` holds `group * size + code`.
    """
    held = {}
    size = len(distances[0])
    free = {key: capacity - occupied.count(key) for key in range((max(groups) + 1) * size)}
    waiting = list(range(len(distances)))
    wishes = [sorted(range(size), key=lambda code: (distances[row][code], code)) for row in range(len(distances))]
    while waiting:
        row = waiting.pop()
        code = wishes[row].pop(0)
        key = groups[row] * size + code
        held.setdefault(key, []).append((distances[row][code], row))
        if len(held[key]) > free[key]:
            worst = max(held[key])
            held[key].remove(worst)
            waiting.append(worst[1])
    codes = {row: key % size for key, rows in held.items() for _, row in rows}
    return [codes[row] for row in range(len(distances))]
