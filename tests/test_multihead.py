"""MultiHeadAttention against torch's, and the Transformer built on it."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastrnn
from fastrnn import MultiHeadAttention
from fastrnn.lm import transformer
from fastrnn.lm.config import CorpusOptions
from fastrnn.lm.data import batchify, load_corpus
from fastrnn.lm.transformer import Transformer, TransformerBlock


def pair(n_units, n_heads, dtype=torch.float64):
    """Ours and torch's, with the same weights."""
    torch.manual_seed(0)
    ours = fastrnn.MultiHeadAttention(n_units, n_heads).to(dtype)
    theirs = nn.MultiheadAttention(n_units, n_heads, batch_first=True).to(dtype)
    projections = (ours.q_proj, ours.k_proj, ours.v_proj)
    theirs.in_proj_weight.data = torch.cat([p.weight for p in projections])
    theirs.in_proj_bias.data = torch.cat([p.bias for p in projections])
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    return ours, theirs


@pytest.mark.parametrize("kind", ["none", "pairs", "keys", "heads", "integers"])
def test_equals_torchs(kind):
    ours, theirs = pair(24, 3)
    query, memory = torch.randn(2, 5, 24).double(), torch.randn(2, 7, 24).double()
    allowed = torch.rand(2, 3, 5, 7) > 0.3
    allowed[..., 0] = True
    mask = {
        "none": None,
        "pairs": allowed[:, 0],
        "keys": allowed[:, 0, :1],
        "heads": allowed,
        "integers": allowed[:, 0].int(),
    }[kind]
    full = mask if mask is None or mask.dim() == 4 else mask.bool().unsqueeze(1).expand(2, 3, 5, 7)
    results = []
    for module, options in (
        (ours, {"mask": mask}),
        (theirs, {"attn_mask": None if full is None else ~full.flatten(0, 1)}),
    ):
        leaf = query.clone().requires_grad_()
        output = module(leaf, memory, memory, **options)
        output = output[0] if isinstance(output, tuple) else output
        results.append([output, *torch.autograd.grad(output.square().sum(), leaf)])
    torch.testing.assert_close(*results)


def test_names_and_dropout():
    module = fastrnn.MultiHeadAttention(8, 2, dropout=0.5)
    names = {name.split(".")[0] for name in module.state_dict()}
    assert names == {"q_proj", "k_proj", "v_proj", "out_proj"} and len(module.state_dict()) == 8
    x = torch.randn(2, 6, 8)
    assert not torch.equal(module(x, x, x), module(x, x, x))
    module.eval()
    assert torch.equal(module(x, x, x), module(x, x, x))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((10, 3), "n_heads must divide n_units = 10, got 3"),
        ((0, 1), "n_units must be a positive int, got 0"),
        ((8, 2.0), "n_heads must be a positive int, got 2.0"),
        ((8, 2, 1.0), r"dropout must be in \[0, 1\), got 1.0"),
        ((8, 2, -0.1), r"dropout must be in \[0, 1\), got -0.1"),
    ],
)
def test_wrong_sizes(sizes, message):
    with pytest.raises(ValueError, match=f"MultiHeadAttention: {message}"):
        fastrnn.MultiHeadAttention(*sizes)


@pytest.mark.parametrize(
    ("query", "memory", "mask", "message"),
    [
        ((2, 5, 7), (2, 4, 8), None, r"query must be \[B, L, n_units = 8\], got \[2, 5, 7\]"),
        ((5, 8), (5, 8), None, r"query must be \[B, L, n_units = 8\], got \[5, 8\]"),
        ((2, 5, 8), (3, 4, 8), None, r"key must be \[B = 2, L, n_units = 8\], got \[3, 4, 8\]"),
        ((2, 5, 8), (2, 4, 8), (2, 5, 3), r"\[B, Lq, Lk\] = \[2, 5, 4\], got \[2, 5, 3\]"),
        ((2, 5, 8), (2, 4, 8), (2, 3, 5, 4), r"Lq, Lk\] = \[2, 2, 5, 4\], got \[2, 3, 5, 4\]"),
    ],
)
def test_wrong_inputs(query, memory, mask, message):
    module = fastrnn.MultiHeadAttention(8, 2)
    mask = None if mask is None else torch.ones(mask, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        module(torch.zeros(query), torch.zeros(memory), torch.zeros(memory), mask)


def test_a_value_of_another_length_is_refused():
    module = fastrnn.MultiHeadAttention(8, 2)
    x = torch.zeros(2, 4, 8)
    with pytest.raises(ValueError, match=r"value must be \[B = 2, L = 4, n_units = 8\], got"):
        module(x, x, x[:, :3])


@pytest.mark.parametrize(
    ("wrong", "change", "error", "message"),
    [
        ("query", torch.Tensor.double, ValueError, "have the weights' dtype torch.float32, got"),
        ("key", torch.Tensor.half, ValueError, "have the weights' dtype torch.float32, got"),
        ("value", torch.Tensor.long, ValueError, "have the weights' dtype torch.float32, got"),
        ("query", lambda x: x.to("meta"), ValueError, "be on the weights' device cpu, got meta"),
        ("query", torch.Tensor.tolist, TypeError, "be a Tensor, got list"),
        ("mask", torch.Tensor.tolist, TypeError, "be a Tensor, got list"),
    ],
)
def test_inputs_of_another_type_dtype_or_device(wrong, change, error, message):
    module, x = fastrnn.MultiHeadAttention(8, 2), torch.zeros(1, 3, 8)
    given = {"query": x, "key": x, "value": x, "mask": torch.ones(1, 3, 3).bool()}
    with pytest.raises(error, match=f"^MultiHeadAttention: {wrong} must {message}.*$"):
        module(**(given | {wrong: change(given[wrong])}))


def test_autocast_takes_any_mix_of_dtypes():
    module, x = fastrnn.MultiHeadAttention(8, 2), torch.randn(1, 3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x, x.bfloat16(), x.half()).dtype == torch.bfloat16
        with pytest.raises(ValueError, match="dtype torch.float32, got torch.float64"):
            module(x.double(), x, x)


def test_a_dropout_that_is_no_number_is_refused():
    with pytest.raises(TypeError, match="MultiHeadAttention: dropout must be a number, got str"):
        fastrnn.MultiHeadAttention(8, 2, "a")


def test_a_floating_mask_is_refused():
    module, x = fastrnn.MultiHeadAttention(8, 2), torch.zeros(1, 3, 8)
    with pytest.raises(ValueError, match="boolean or of 0/1 integers, got torch.float32"):
        module(x, x, x, torch.ones(1, 3, 3))


def test_sinusoids():
    table = transformer.sinusoids(50, 7)
    assert table.shape == (50, 7)
    for t, i in ((0, 0), (3, 1), (49, 2)):
        angle = torch.tensor(t / 10000 ** (2 * i / 7))
        torch.testing.assert_close(table[t, 2 * i], angle.sin())
        torch.testing.assert_close(table[t, 2 * i + 1], angle.cos())


@pytest.mark.parametrize("pre_norm", [True, False])
def test_no_place_sees_a_later_or_a_padded_one(pre_norm):
    torch.manual_seed(0)
    model = Transformer(12, 2, 3, pre_norm=pre_norm).double()
    x = torch.randn(6, 2, 12, dtype=torch.float64)
    padding = torch.zeros(6, 2, dtype=torch.bool)
    padding[4:, 0] = True
    output = model(x, padding)
    assert output.shape == x.shape
    changed = x.clone()
    changed[4:] += 1
    torch.testing.assert_close(model(changed, padding)[:4], output[:4])
    first_padded = torch.zeros(6, 2, dtype=torch.bool)
    first_padded[0, 1] = True
    changed = x.clone()
    changed[0, 1, :5] += 1
    found = [model(each, first_padded)[1:, 1] for each in (x, changed)]
    torch.testing.assert_close(*found)
    assert not torch.allclose(model(changed)[1:, 1], model(x)[1:, 1])


class Torchs(nn.Module):
    """A block's attention by torch's own function, with ours' weights."""

    def __init__(self, ours):
        super().__init__()
        self.ours = ours

    def forward(self, query, key, value, mask, is_causal):
        assert mask is None
        heads = [
            projection(x).unflatten(-1, (self.ours.n_heads, -1)).transpose(1, 2)
            for projection, x in (
                (self.ours.q_proj, query),
                (self.ours.k_proj, key),
                (self.ours.v_proj, value),
            )
        ]
        output = F.scaled_dot_product_attention(*heads, is_causal=is_causal)
        return self.ours.out_proj(output.transpose(1, 2).flatten(2))


class WordModel(nn.Module):
    """Embedding, Transformer, tied softmax; with torch's attention if that is asked for."""

    def __init__(self, words, torchs):
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Embedding(words, 64)
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        self.body = Transformer(64, 2, 4)
        for block in self.body.blocks if torchs else ():
            assert isinstance(block, TransformerBlock)
            block.attention = Torchs(block.attention)

    def loss(self, tokens, targets):
        states = self.body(self.encoder(tokens))
        return F.cross_entropy(F.linear(states.flatten(0, 1), self.encoder.weight), targets)


def test_forty_steps_agree_with_torchs_attention():
    found = os.environ.get("FASTRNN_DATA")
    name = "ptb" if found and Path(found, "ptb").is_dir() else "python-docs"
    corpus = load_corpus(CorpusOptions(name), 20, 35)
    columns = batchify(corpus.train[:30000].long(), 20)
    losses = []
    for torchs in (False, True):
        model = WordModel(len(corpus.vocabulary), torchs)
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        trace = []
        for step in range(40):
            at = step * 35
            loss = model.loss(columns[at : at + 35], columns[at + 1 : at + 36].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            trace.append(loss.item())
        losses.append(torch.tensor(trace))
    ours, theirs = losses
    assert theirs[-5:].mean() < theirs[0] - 0.5  # it learns
    torch.testing.assert_close(ours, theirs, rtol=0.01, atol=0)


def test_explain_names_every_backend():
    attention = fastrnn.MultiHeadAttention(8, 2)
    text = fastrnn.explain(attention).splitlines()
    assert "runs masked attention (" in text[0]
    assert {line.split(":")[0] for line in text} == {"native", "triton", "reference"}
    with fastrnn.use_backend("reference"):
        lines = fastrnn.explain(attention, torch.zeros(1, 3, 8)).splitlines()
    assert lines[0] == "reference: runs masked attention (products and softmax in torch)"


def test_cannot_be_scripted():
    words = r"^torch.jit.script: fastrnn.MultiHeadAttention cannot be scripted; use torch.compile"
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match=words):
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit.script itself
        torch.jit.script(nn.Sequential(MultiHeadAttention(8, 2)))


@pytest.mark.parametrize("sizes", [(0, 3, 3), (2, 0, 3), (2, 3, 0)], ids=str)
def test_nothing_to_attend_with_or_to(sizes):
    batch, queries, keys = sizes
    memory = torch.randn(batch, keys, 8)
    attention = MultiHeadAttention(8, 2)
    output = attention(torch.randn(batch, queries, 8), memory, memory)
    expected = attention.out_proj.bias.expand(batch, queries, 8)
    if keys == 0:
        torch.testing.assert_close(output, expected)
    assert output.shape == (batch, queries, 8)
