import copy

import pytest
import torch
from torch import nn

from ilrec_trl.rewards.sasrec import FULL_SOFTMAX_ITEMS, SASRecConfig, SASRecModel, draw_others, sampled_softmax_loss
from ilrec_trl.rewards.sasrec_training import SparseRowsAdam, clip_sparse_grad_norm


ITEMS = [str(item) for item in range(40)]
IDS = torch.tensor([[1, 5, 5, 40], [7, 2, 0, 0]])
LABELS = torch.tensor([[4, 4, 39, 0], [1, 6, -100, -100]])


def model(num_sampled_negatives, tied=False):
    torch.manual_seed(0)
    config = SASRecConfig(
        item_ids=ITEMS,
        hidden_size=8,
        dropout=0.0,
        initializer_range=0.5,
        tie_word_embeddings=tied,
        num_sampled_negatives=num_sampled_negatives,
    )
    made = SASRecModel(config).double().train()
    if made.output is not None:
        nn.init.normal_(made.output.bias)
    return made


class TestSampledSoftmaxLoss:
    @pytest.mark.parametrize("tied", [False, True])
    def test_with_every_item_drawn_loss_and_gradients_are_those_of_the_full_softmax(self, tied):
        full, sampled = model(0, tied), model(len(ITEMS), tied)
        losses = [made(IDS, labels=LABELS).loss for made in (full, sampled)]
        torch.testing.assert_close(losses[1], losses[0], atol=1e-6, rtol=0)
        for loss in losses:
            loss.backward()
        assert sampled.item_embedding.weight.grad.is_sparse
        for (name, expected), (_, got) in zip(full.named_parameters(), sampled.named_parameters(), strict=True):
            gradient = got.grad.to_dense() if got.grad.is_sparse else got.grad
            torch.testing.assert_close(gradient, expected.grad, atol=1e-7, rtol=1e-5, msg=name)

    def test_the_normalising_sum_is_right_on_average(self):
        torch.manual_seed(0)
        vectors, weight, bias = torch.randn(3, 4), torch.randn(50, 4), torch.randn(50)
        targets = torch.tensor([3, 3, 17])
        scores = vectors @ weight.T + bias
        exact = scores.exp().sum(1)
        sums = []
        for _ in range(1500):
            # exp(loss) is the sum over the exponential of the target
            loss = [sampled_softmax_loss(vectors[n : n + 1], targets[n : n + 1], weight, bias, 20) for n in range(3)]
            sums.append(torch.stack(loss).exp() * scores[torch.arange(3), targets].exp())
        sums = torch.stack(sums)  # (1500, 3)
        error = sums.std(0) / len(sums) ** 0.5
        assert ((sums.mean(0) - exact).abs() < 4 * error).all()
        assert (error < 0.03 * exact).all()  # or the line above could not fail

    def test_by_hand(self, monkeypatch):
        """Targets 0 and 2, of the four others item 1 and 4 drawn: each of these stands for two."""
        monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: torch.tensor([4, 1, 2, 4]))
        weight = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]])
        loss = sampled_softmax_loss(torch.tensor([[1.0], [0.5]]), torch.tensor([2, 0]), weight, None, 3)
        e = torch.e
        first = (e**1 + e**3 + 2 * e**2 + 2 * e**5) / e**3
        second = (e**0.5 + e**1.5 + 2 * e**1 + 2 * e**2.5) / e**0.5
        assert loss.item() == pytest.approx(torch.tensor([first, second]).log().sum().item(), abs=1e-5)

    def test_others_are_distinct_and_no_targets(self):
        torch.manual_seed(0)
        positives = torch.tensor([0, 3, 9])
        for _ in range(50):
            others = draw_others(positives, 30, 20)
            assert len(others.unique()) == len(others) <= 20
            assert not set(others.tolist()) & {0, 3, 9}
        assert draw_others(positives, 10, 7).tolist() == [1, 2, 4, 5, 6, 7, 8]

    def test_when_it_is_used(self):
        few, many = (SASRecConfig(item_ids=["a"] * number) for number in (FULL_SOFTMAX_ITEMS, FULL_SOFTMAX_ITEMS + 1))
        assert few.samples_items == 0
        assert many.samples_items == 4096
        many.num_sampled_negatives = 0
        assert many.samples_items == 0
        made = model(5)
        assert made(IDS, labels=LABELS).logits is None
        assert made.eval()(IDS, labels=LABELS).logits.shape == (6, 40)  # all items, where nothing is trained
        with pytest.raises(ValueError, match="num_sampled_negatives=-1 is negative"):
            model(-1)


class TestSparseRowsAdam:
    def rows(self, weight, numbers, sparse):
        return nn.functional.embedding(torch.tensor(numbers), weight, sparse=sparse).pow(2).sum()

    def test_equals_adam_where_every_row_takes_part(self):
        torch.manual_seed(0)
        matrix, vector = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5))
        twins = copy.deepcopy((matrix, vector))
        settings = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.0}
        plain = torch.optim.AdamW(twins, **settings)
        ours = SparseRowsAdam([matrix], torch.optim.AdamW([vector], **settings))
        schedules = [torch.optim.lr_scheduler.LambdaLR(each, lambda step: 1 / (step + 1)) for each in (plain, ours)]
        for _ in range(5):
            for (w, v), optimizer, sparse in ((twins, plain, False), ((matrix, vector), ours, True)):
                optimizer.zero_grad()
                (self.rows(w, [0, 1, 2, 1], sparse) + v.pow(3).sum()).backward()
                optimizer.step()
            for schedule in schedules:
                schedule.step()
        torch.testing.assert_close(matrix, twins[0])
        torch.testing.assert_close(vector, twins[1])

    def test_other_rows_stay_as_they_are_and_a_saved_state_goes_on(self):
        torch.manual_seed(0)
        matrix, vector = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(5))
        start = matrix.detach().clone()

        def optimizer():
            return SparseRowsAdam([matrix], torch.optim.AdamW([vector], lr=0.1))

        def step(ours, rows):
            ours.zero_grad()
            (self.rows(matrix, rows, True) + vector.sum()).backward()
            ours.step()

        first = optimizer()
        step(first, [1, 4])
        step(first, [1])
        assert ((matrix != start).any(1)).tolist() == [False, True, False, False, True, False]
        saved = copy.deepcopy((first.state_dict(), matrix.data, vector.data))
        step(first, [4, 5])
        expected = copy.deepcopy((matrix.data, vector.data))
        second = optimizer()
        second.load_state_dict(saved[0])
        matrix.data, vector.data = saved[1:]
        step(second, [4, 5])
        assert torch.equal(matrix, expected[0])
        assert torch.equal(vector, expected[1])

    @pytest.mark.parametrize("max_norm", [0.5, 1e6])
    def test_clipping_equals_that_of_dense_gradients(self, max_norm):
        torch.manual_seed(0)
        dense = [nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(2))]
        sparse = copy.deepcopy(dense)
        for parameters, flag in ((dense, False), (sparse, True)):
            (self.rows(parameters[0], [1, 4, 1], flag) + parameters[1].pow(2).sum()).backward()
        norms = nn.utils.clip_grad_norm_(dense, max_norm), clip_sparse_grad_norm(sparse, max_norm)
        torch.testing.assert_close(norms[1], norms[0])
        torch.testing.assert_close(sparse[0].grad.to_dense(), dense[0].grad)
        torch.testing.assert_close(sparse[1].grad, dense[1].grad)
        assert sparse[2].grad is None
